"""Pretrain the autoencoder: 64 x 64 x 3 pixels to 32 x 32 x 4 latents and back.

    python -m starter.recipe.vae --work DIR --minutes 12

Losses: see `reconstruction_loss`. The posterior's noise keeps the latent space smooth, which the flow model needs.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import starter
from starter.recipe.data import CHANNEL_ORDERS, load_images, to_signal, to_tensor
from starter.recipe.untyped import AutoencoderKL

BATCH = 8
LEARNING_RATE = 3e-3
KL_WEIGHT = 2e-4


def main() -> None:
    """Train for a set time and save the autoencoder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    options = parser.parse_args()
    torch.manual_seed(0)
    train = to_tensor(load_images(starter.train_dataset()))
    held = to_signal(to_tensor(load_images(starter.heldout_dataset())))
    vae = new_vae()
    pass_colours(vae)
    fit(vae, train, minutes=options.minutes)
    vae.eval()
    set_latent_scale(vae, to_signal(train))
    print(f"PSNR on held-out logos {psnr(vae, held):.2f} dB")
    vae.save_pretrained(options.work / "vae")


def new_vae() -> Any:
    """The untrained autoencoder: two levels, one residual block each, no attention, 4 latent channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


@torch.no_grad()
def pass_colours(vae: Any) -> None:
    """Initialise so that a small version of the image passes through from the first step on.

    From a random start colours are learnt last: every group norm removes most of what tells one flat colour from
    another. Here the first channels carry R, G, B and the next three their negatives, whose difference SiLU leaves
    alone: silu(x) - silu(-x) = x. Residual branches start at zero.
    """
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            kind = name.rsplit(".", 1)[-1]
            if kind == "conv2":
                module.weight.zero_()
            elif kind in ("conv_shortcut", "conv") and module.stride == (1, 1):
                torch.nn.init.dirac_(module.weight)
            elif kind == "conv":
                torch.nn.init.dirac_(module.weight)
                centre = module.weight[:, :, 1, 1].clone()
                module.weight.zero_()
                module.weight[:, :, :2, :2] = 0.25 * centre[:, :, None, None]
    for coder in (vae.encoder, vae.decoder):
        _pairs(coder.conv_in.weight, 1.0, outgoing=True)
        _pairs(coder.conv_out.weight, 1.0, outgoing=False)
    latents = vae.config.latent_channels
    vae.encoder.conv_out.weight[latents:] *= 0.1
    vae.encoder.conv_out.bias[latents:] = -5.0


def _pairs(weight: Tensor, gain: float, *, outgoing: bool) -> None:
    """Three channels to or from themselves and their negatives; the rest of the weights becomes small."""
    weight *= 0.3
    for channel in range(3):
        if outgoing:
            weight[[channel, channel + 3]] = 0.0
            weight[channel, channel, 1, 1], weight[channel + 3, channel, 1, 1] = gain, -gain
        else:
            weight[channel] = 0.0
            weight[channel, channel, 1, 1], weight[channel, channel + 3, 1, 1] = gain, -gain


def fit(vae: Any, train: Tensor, *, minutes: float) -> None:
    """AdamW with a cosine that ends when the time does, since machines differ in speed."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    random = torch.Generator().manual_seed(0)
    started = time.monotonic()
    step = 0
    while (along := (time.monotonic() - started) / (60 * minutes)) < 1.0:
        rate = LEARNING_RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * along))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = _loss(vae, _batch(train, random), random)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 100 == 0:
            print(f"step {step} {60 * minutes * along:.0f} s loss {loss.item():.4f}", flush=True)


def reconstruction_loss(decoded: Tensor, target: Tensor) -> Tensor:
    """L1 + MSE/2 + L1/2 of the gradients; going a little beyond the ends of the range is free: paper stays white."""
    error = decoded - target
    beyond = (target >= 1.0) & (error > 0) | (target <= -1.0) & (error < 0)
    error = torch.where(beyond, error.sign() * (error.abs() - 0.05).clamp_min(0.0), error)
    across, down = error.diff(dim=3).abs().mean(), error.diff(dim=2).abs().mean()
    return error.abs().mean() + 0.5 * error.square().mean() + 0.5 * (across + down)


def psnr(vae: Any, signal: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructions of images -1 to 1, shape (N, 3, H, W)."""
    errors = (decode(vae, encode(vae, signal)).clamp(-1, 1) - signal).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4.0 / errors.clamp_min(1e-9))).mean())


@torch.inference_mode()
def encode(vae: Any, signal: Tensor) -> Tensor:
    """Posterior means (N, 4, H/2, W/2) of images -1 to 1."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in torch.split(signal, 64)])


@torch.inference_mode()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images of unscaled latents, about -1 to 1, not clipped."""
    return torch.cat([vae.decode(part).sample for part in torch.split(latents, 64)])


def set_latent_scale(vae: Any, signal: Tensor) -> None:
    """Put mean and inverse deviation of the latents into the configuration: scaled latents have mean 0, variance 1."""
    latents = encode(vae, signal)
    vae.register_to_config(shift_factor=float(latents.mean()), scaling_factor=float(1.0 / latents.std()))


def _batch(train: Tensor, random: torch.Generator) -> Tensor:
    """Recoloured, mirrored, shifted logos, -1 to 1."""
    pixels = train[torch.randint(len(train), (BATCH,), generator=random)]
    orders = torch.tensor(CHANNEL_ORDERS)[torch.randint(len(CHANNEL_ORDERS), (BATCH,), generator=random)]
    pixels = torch.gather(pixels, 1, orders[:, :, None, None].expand_as(pixels))
    turn, dy, dx = (int(n) for n in torch.randint(-4, 5, (3,), generator=random))
    return to_signal(torch.rot90(pixels.roll((dy, dx), (2, 3)), turn, (2, 3)))


def _loss(vae: Any, signal: Tensor, random: torch.Generator) -> Tensor:
    posterior = vae.encode(signal).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=random)
    decoded = vae.decode(latents).sample
    divergence = 0.5 * (posterior.mean.square() + posterior.var - 1.0 - posterior.logvar).mean()
    loss: Tensor = reconstruction_loss(decoded, signal) + KL_WEIGHT * divergence
    return loss


if __name__ == "__main__":
    main()
