"""Latents and text embeddings on disk."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import tiny_sd3
import torch
from PIL import Image

from worker.families.diffusion import cache
from worker.families.diffusion.data import fit


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_sd3.pipeline()


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (32, 24), (number * 10, 255 - number * 10, (number * 37) % 256))


def sample(number: int, opened: list[int] | None = None) -> cache.Sample:
    def read() -> Image.Image:
        if opened is not None:
            opened.append(number)
        return picture(number)

    words = "abcdefghij"
    return cache.Sample(
        digest=hashlib.sha256(bytes([number])).hexdigest(),
        caption=f"{words[number % 10]} {words[number // 10]}",
        open=read,
    )


def test_each_sample_gets_its_own_latent_and_caption(pipeline: Any, tmp_path: Path) -> None:
    numbers = list(range(20))
    random.Random(0).shuffle(numbers)
    numbers.append(numbers[0])
    opened: list[int] = []
    built = cache.build(pipeline, [sample(n, opened) for n in numbers], tmp_path, resolution=16, max_text_tokens=8)
    assert len(built) == 21
    assert sorted(opened) == list(range(20))
    for position in (0, 7, 20):
        number = numbers[position]
        pixels = cache.to_pixels(fit(picture(number), 16, 16))[None]
        posterior = pipeline.vae.encode(pixels).latent_dist
        expected = (posterior.mean - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
        torch.testing.assert_close(built.mean[built.latent_rows[position]][None], expected)
        embeds, _, pooled, _ = pipeline.encode_prompt(
            sample(number).caption, None, None, do_classifier_free_guidance=False, max_sequence_length=0
        )
        row = built.caption_rows[position, 0]
        torch.testing.assert_close(built.prompt_embeds[row][None], embeds)
        torch.testing.assert_close(built.pooled[row][None], pooled)
    empty, _, _, _ = pipeline.encode_prompt("", None, None, do_classifier_free_guidance=False, max_sequence_length=0)
    torch.testing.assert_close(built.prompt_embeds[built.empty_row][None], empty)


def test_a_complete_cache_is_used_again_and_an_incomplete_one_made_again(pipeline: Any, tmp_path: Path) -> None:
    opened: list[int] = []
    samples = [sample(number, opened) for number in range(18)]

    def stop(done: int, total: int) -> None:
        if done > 16:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        cache.build(pipeline, samples, tmp_path, resolution=16, max_text_tokens=8, on_progress=stop)
    opened.clear()
    cache.build(pipeline, samples, tmp_path, resolution=16, max_text_tokens=8)
    assert len(opened) == 18
    cache.build(pipeline, samples, tmp_path, resolution=16, max_text_tokens=8)
    assert len(opened) == 18
    other = cache.build(pipeline, samples, tmp_path, resolution=32, max_text_tokens=8)
    assert len(opened) == 36
    assert other.mean.shape[-1] == 8


def test_text_is_never_padded_to_what_the_model_has_not_seen(pipeline: Any, tmp_path: Path) -> None:
    assert cache.t5_tokens(pipeline, None) == 0
    assert cache.t5_tokens(pipeline, tiny_sd3.TEXT_TOKENS) == 0
    assert cache.t5_tokens(pipeline, tiny_sd3.TEXT_TOKENS + 3) == 3
    built = cache.build(pipeline, [sample(1)], tmp_path, resolution=16, max_text_tokens=11)
    assert built.prompt_embeds.shape[1:] == (11, 32)
