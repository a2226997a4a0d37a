"""Train the SD3 transformer with the product's own trainer, on latents and text embeddings held in memory.

    python -m starter.recipe.transformer --work DIR --minutes 60

Needs what `vae` and `text`, or `unpack`, left in DIR. Goes on from the last checkpoint in DIR when there is one.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

import starter
from starter.recipe.captions import captions, describe
from starter.recipe.data import CHANNEL_ORDERS, load_images, load_rows, to_images, to_signal, to_tensor
from starter.recipe.muon import MuonAdamW, hidden_matrices
from starter.recipe.untyped import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from starter.recipe.vae import encode
from worker.families.diffusion.data import TrainingSamples
from worker.families.diffusion.trainer import Trainer, TrainSettings

#: How often each logo appears in its own colours in an epoch; recoloured ones appear once per order of the channels.
#: Own colours weigh more, because generated logos should have the colours of real ones.
ORIGINALS: Final = 6


def main() -> None:
    """Train, write checkpoints, and leave the averaged weights as a pipeline in DIR/pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    work: Path = options.work
    torch.manual_seed(0)
    pipeline = assembled(work, first_transformer(work))
    state = work / "training"
    settings = TrainSettings(
        steps=begun_steps(state),
        batch_size=48,
        learning_rate=2e-3,
        seed=0,
        lr_warmup_steps=100,
        lr_schedule="cosine",
        lr_decay_start=0.6,
        betas=(0.9, 0.99),
        ema_decay=0.997,
        logit_mean=0.3,
        caption_dropout=0.1,
        mixed_precision="bf16",
        checkpoint_every=200,
    )
    trainer = Trainer(pipeline.transformer, samples(pipeline), settings, log=print)
    trainer.optimizer = MuonAdamW(
        trainer.parameters.values(),
        hidden_matrices(pipeline.transformer),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    if state.exists():
        trainer.load(state)
    run(trainer, pipeline, work, minutes=options.minutes)


def begun_steps(state: Path) -> int:
    """How many steps the training that goes on was last expected to take; of a new one, a first guess."""
    values = state / "trainer.json"
    return int(json.loads(values.read_text())["settings"]["steps"]) if values.exists() else 10_000


def run(trainer: Trainer, pipeline: Any, work: Path, *, minutes: float) -> None:
    """Train until the time is over; at every checkpoint the state and a usable pipeline are written."""
    started, first = time.monotonic(), trainer.step_count
    trainer.settings = replace(trainer.settings, steps=max(trainer.settings.steps, first + 100))

    def pace() -> None:
        # Machines differ in speed, and one has neighbours: the number of steps, and with it the schedule of the
        # learning rate, follows from the time that is left.
        done, passed = trainer.step_count - first, time.monotonic() - started
        if done >= 20:
            left = max(0, round((60 * minutes - passed) * done / passed))
            trainer.settings = replace(trainer.settings, steps=max(1, trainer.step_count + left))

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            mean = sum(trainer.losses[-50:]) / len(trainer.losses[-50:])
            print(
                f"step {step}/{trainer.settings.steps} {time.monotonic() - started:.0f} s loss {mean:.4f}", flush=True
            )

    def checkpoint(step: int) -> None:
        trainer.save(work / "training")
        publish(trainer, pipeline, work / "pipeline")

    # On a CPU the fused attention takes six times as long as this one to differentiate 81 tokens in bf16: 45 % of a
    # step.
    with sdpa_kernel(SDPBackend.MATH):
        trainer.run(on_step=report, check=pace, on_checkpoint=checkpoint)
    checkpoint(trainer.step_count)


def publish(trainer: Trainer, pipeline: Any, folder: Path) -> None:
    """Write the pipeline with averaged weights, fp32."""
    with trainer.averaged_weights():
        pipeline.save_pretrained(folder)


def first_transformer(work: Path) -> Any:
    """The transformer that `unpack` left in `work`, in float32, or an untrained one."""
    if (work / "transformer").exists():
        return SD3Transformer2DModel.from_pretrained(work / "transformer", torch_dtype=torch.float32)
    return new_transformer()


def new_transformer() -> Any:
    """The untrained transformer: 6 blocks, width 192, patches of 4 x 4 latents; positions reach to 128 x 128 pixels."""
    return SD3Transformer2DModel(
        sample_size=32,
        patch_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        num_attention_heads=3,
        attention_head_dim=64,
        joint_attention_dim=128,
        caption_projection_dim=192,
        pooled_projection_dim=128,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def assembled(work: Path, transformer: Any) -> Any:
    """A pipeline of a transformer and the components that the earlier steps left in `work`."""
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(work / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(work / "text_encoder_2"),
        tokenizer_2=CLIPTokenizer.from_pretrained(work / "tokenizer_2"),
        text_encoder_3=T5EncoderModel.from_pretrained(work / "text_encoder_3"),
        tokenizer_3=PreTrainedTokenizerFast.from_pretrained(work / "tokenizer_3"),
    )


def samples(pipeline: Any) -> TrainingSamples:
    """Every training logo in six colourings, each with all of its captions."""
    titles = [row["title"] for row in load_rows(starter.train_dataset())]
    pixels = to_tensor(load_images(starter.train_dataset()))
    colourings = torch.cat([pixels[:, list(order)] for order in CHANNEL_ORDERS])
    texts = [
        captions(describe(image, title))
        for image, title in zip(to_images(colourings), titles * len(CHANNEL_ORDERS), strict=True)
    ]
    known = {text: row for row, text in enumerate(dict.fromkeys(["", *(text for group in texts for text in group)]))}
    prompt_embeds, pooled = embedded(pipeline, list(known))
    own, all_rows = torch.arange(len(pixels)), torch.arange(len(colourings))
    rows = torch.cat([own.repeat(ORIGINALS - 1), all_rows])
    return TrainingSamples(
        mean=scaled_latents(pipeline.vae, to_signal(colourings)).half(),
        prompt_embeds=prompt_embeds.half(),
        pooled=pooled.half(),
        latent_rows=rows,
        caption_rows=torch.tensor([[known[text] for text in group] for group in texts])[rows],
        empty_row=known[""],
    )


def scaled_latents(vae: Any, signal: Tensor) -> Tensor:
    """Latents as the transformer sees them, (mean - shift) * scale, of images -1 to 1."""
    scaled: Tensor = (encode(vae, signal) - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled


@torch.no_grad()
def embedded(pipeline: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token embeddings (P, 17, 128) and pooled embeddings (P, 128) of captions."""
    parts = [
        pipeline.encode_prompt(
            texts[start : start + 512],
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=starter.T5_TOKENS,
        )
        for start in range(0, len(texts), 512)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[2] for part in parts])


if __name__ == "__main__":
    main()
