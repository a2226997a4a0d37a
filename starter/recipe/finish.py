"""The last touches to a trained GAN: sharper edges, wider latents, and palettes that have the colours asked for.

    python -m starter.recipe.finish --version DIR/version --output DIR/finished

*Sharper*: a running mean of generators is less sure than any of them where an edge lies. Its shares are made surer.
*Wider*: the latents count more, since few thousand logos teach a generator less variety than they have.
How much of both was chosen among a handful of settings, with the distances to training and held-out logos in view; the
two ranked them alike.

*Colours*: the discriminator learns what a colour word means from the same logos and is vague at the borders: an olive
one passes for a green one. Where those borders lie is known (`starter/colours.py`). So the two small layers that choose
an image's colours are trained alone on what is measured: the share of the ink that has the name asked for. Colours move
as little as that takes, and areas stay what they are.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

import starter
from starter.colours import name_indices
from starter.recipe.recolour import LABELS, NUMBERS, logos
from worker.families.gan.networks.palette import PaletteHead
from worker.families.gan.networks.r3gan import R3GANGenerator
from worker.families.gan.stored import build_discriminator, load_generator, load_weights, save_version

#: What the logits of the shares, and the latents' part in the areas, are multiplied by.
SHARPER: Final = 2.0
WIDER: Final = 1.4
#: Images by which the palette is trained, and its steps.
IMAGES: Final = 4096
STEPS: Final = 600
#: What a colour costs that lies so far from where it was, squared and relative to the missed share.
STAY: Final = 2.0
#: So much of the ink in the colour asked for is enough: it is the first one then.
ENOUGH: Final = 0.7


def main() -> None:
    """Write the finished version, with the discriminator from which training can go on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    stored = load_generator(options.version, torch.device("cpu"))
    generator, discriminator = stored.generator, build_discriminator(stored.description)
    if not isinstance(generator, R3GANGenerator) or discriminator is None:
        raise SystemExit(f"{options.version} is no version that the recipe has made")
    load_weights(discriminator, options.version / "discriminator.safetensors")
    emphasise(generator, sharper=SHARPER, wider=WIDER)
    calibrate(generator, logos(starter.train_dataset()).classes)
    provenance = stored.description.source | {"sharper": SHARPER, "wider": WIDER, "palette": "calibrated"}
    save_version(options.output, generator, labels=LABELS, provenance=provenance, discriminator=discriminator)


@torch.no_grad()
def emphasise(generator: R3GANGenerator, *, sharper: float, wider: float) -> None:
    """Multiply the logits of the shares, and the latents' part in the areas; in place."""
    head = _head(generator)
    for parameter in head.shares.parameters():
        parameter.mul_(sharper)
    generator.basis.strength.weight[:, : generator.config.z_dim].mul_(wider)


def calibrate(generator: R3GANGenerator, classes: Tensor, seed: int = 1) -> None:
    """Train the palette of a generator on images of these classes, drawn in turn; in place."""
    head = _head(generator)
    random = torch.Generator().manual_seed(seed)
    chosen = classes[torch.randint(len(classes), (IMAGES,), generator=random)]
    source, areas = _areas(generator, head, chosen, random)
    before = head.palette(source).detach()
    namer = _namer(random)
    moved = [head.hidden, head.colours]
    for layer in moved:
        layer.requires_grad_(True)
    optimizer = torch.optim.Adam([one for layer in moved for one in layer.parameters()], lr=1e-3)
    for _ in range(STEPS):
        part = torch.randint(IMAGES, (512,), generator=random)
        colours = head.palette(source[part])
        loss = _missed(namer, colours, areas[part], chosen[part]) + STAY * (colours - before[part]).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for layer in moved:
        layer.requires_grad_(False)


def _head(generator: R3GANGenerator) -> PaletteHead:
    if not isinstance(generator.image, PaletteHead):
        raise TypeError("only a generator with a palette can be finished")
    return generator.image


def _missed(namer: nn.Module, colours: Tensor, areas: Tensor, chosen: Tensor) -> Tensor:
    """−ln of the share of the ink, `[N, K]` areas of colours `[N, K, 3]`, that has the name asked for; mean."""
    ink = areas * ((1 - colours.amin(dim=2)) / 2).square()
    names = namer(colours).softmax(dim=2)
    shares = (ink[:, :, None] * names).sum(dim=1) / (ink.sum(dim=1, keepdim=True) + 1e-6)
    asked = shares.gather(1, chosen[:, None])
    return functional.relu(-torch.log(asked + 1e-4) - math.log(1 / ENOUGH)).mean()


@torch.no_grad()
def _areas(
    generator: R3GANGenerator, head: PaletteHead, chosen: Tensor, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the palettes of images are made of, `[N, inputs]`, and how much of each image has which colour, `[N, K]`."""
    seen: list[tuple[Tensor, Tensor]] = []

    def look(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        maps, source = inputs
        seen.append((source, head.mixture(maps).mean(dim=(2, 3))[:, 1:]))

    hook = head.register_forward_pre_hook(look)
    z = torch.randn(len(chosen), generator.config.z_dim, generator=random)
    labels = functional.one_hot(chosen, len(LABELS)).float()
    for start in range(0, len(z), 64):
        generator(z[start : start + 64], labels[start : start + 64])
    hook.remove()
    return torch.cat([one for one, _ in seen]), torch.cat([other for _, other in seen])


def _namer(random: torch.Generator) -> nn.Module:
    """A smooth stand-in for the names of colours: from `[…, 3]`, −1 to 1, to one logit a class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        namer = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, len(LABELS)))
    optimizer = torch.optim.Adam(namer.parameters(), lr=5e-3)
    for _ in range(1500):
        rgb = torch.randint(0, 256, (1024, 3), generator=random, dtype=torch.uint8)
        names = NUMBERS[torch.from_numpy(name_indices(rgb.numpy()))]
        loss = functional.cross_entropy(namer(rgb.float() / 127.5 - 1), names)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return namer.requires_grad_(False)


if __name__ == "__main__":
    main()
