"""The shipped text-to-image pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import starter

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    loaded = diffusers.StableDiffusion3Pipeline.from_pretrained(starter.diffusion_dir())
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: Any, prompts: list[str], seeds: list[int]) -> list[np.ndarray[Any, Any]]:
    images = pipeline(
        prompts,
        num_inference_steps=4,
        guidance_scale=starter.DIFFUSION_GUIDANCE,
        height=starter.DIFFUSION_SIZE,
        width=starter.DIFFUSION_SIZE,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        max_sequence_length=starter.T5_TOKENS,
    ).images
    return [np.asarray(image).astype(int) for image in images]


def test_one_seed_gives_one_image_alone_and_in_a_batch(pipeline: Any) -> None:
    alone = draw(pipeline, ["blue round logo"], [7])[0]
    again, other = draw(pipeline, ["blue round logo"] * 2, [7, 8])
    assert alone.shape == (64, 64, 3)
    assert np.abs(alone - again).max() <= 2
    assert np.abs(alone - other).mean() > 2


def test_the_silent_text_encoder_is_silent(pipeline: Any) -> None:
    embeds, _, pooled, _ = pipeline.encode_prompt(
        "blue round logo", None, None, do_classifier_free_guidance=False, max_sequence_length=starter.T5_TOKENS
    )
    assert embeds.shape == (1, starter.DIFFUSION.parameters["max_text_tokens"], 128)
    assert pooled.shape == (1, 128)
    assert (embeds[:, starter.CLIP_TOKENS :] == 0).all()
    assert embeds[:, : starter.CLIP_TOKENS].abs().max() > 0


def test_the_largest_declared_size_can_be_drawn(pipeline: Any) -> None:
    size = starter.DIFFUSION.parameters["max_size"]
    latents = pipeline(
        "red logo", num_inference_steps=1, height=size, width=size, max_sequence_length=1, output_type="latent"
    )
    assert latents.images.shape[-2:] == (size // 2, size // 2)
