"""Latents and text embeddings, computed once per image and per caption and kept on disk.

Rows are found by what was encoded (a digest of the image, the caption itself), never by the step at which it
was first needed: a cache that is filled in step order and read in shuffled order gives captions to other
images.

A cache is two safetensors files of the final size, filled row by row and then memory-mapped, so that neither
making nor using it needs memory for more than a batch: at 1024² an image takes 1 MB and a caption with T5
takes 2.7 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from worker.families.diffusion.data import TrainingSamples, fit

#: Called with (done, total) as encoding goes on; may raise to stop it.
OnProgress = Callable[[int, int], None]

#: Captions at once, and images at once as long as they have no more pixels together than the second number: an
#: fp32 VAE needs about 4 GB for each megapixel.
_BATCH: Final = 16
_BATCH_PIXELS: Final = 2 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a training set with its caption."""

    #: SHA-256 of the encoded image file: what its latent is filed under.
    digest: str
    caption: str
    #: Reads and decodes the image to RGB; called once per digest.
    open: Callable[[], Image.Image]


@torch.no_grad()
def encode_images(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels `[B, 3, H, W]` in −1 … 1 to the mean and deviation of their latents, fp32 `[B, C, h, w]` each.

    x0 = (sample − shift_factor)·scaling_factor, so the mean is shifted and scaled and the deviation scaled
    only. (diffusers, examples/dreambooth/train_dreambooth_sd3.py)
    """
    posterior = vae.encode(pixels.to(device=vae.device, dtype=vae.dtype)).latent_dist
    shift = vae.config.shift_factor or 0.0
    scale = vae.config.scaling_factor
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


@torch.no_grad()
def encode_captions(pipeline: Any, captions: list[str], t5_tokens: int) -> tuple[Tensor, Tensor]:
    """Token embeddings `[B, T, D]` and pooled embeddings `[B, E]`, exactly as the pipeline makes them at
    inference.

    CLIP-L ⊕ CLIP-G features padded to T5's width, joined with `t5_tokens` T5 features along the sequence.
    """
    embeds, _, pooled, _ = pipeline.encode_prompt(
        prompt=captions,
        prompt_2=captions,
        prompt_3=captions,
        do_classifier_free_guidance=False,
        max_sequence_length=t5_tokens,
    )
    return embeds, pooled


def t5_tokens(pipeline: Any, max_text_tokens: int | None) -> int:
    """How many of `max_text_tokens` tokens are T5's: what the CLIP encoders leave. It is the pipeline's
    `max_sequence_length`.

    Left alone, the pipeline pads to 256 T5 tokens, and without a T5 with 256 zeros: for a small model 2–4
    times the work, and attention spread over nothing. Without a limit: none without a T5, SD3's 256 with one.
    """
    if max_text_tokens is None:
        return 0 if pipeline.text_encoder_3 is None else 256
    return max(0, max_text_tokens - int(pipeline.tokenizer_max_length))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as fp32 `[3, H, W]` in −1 … 1, which is what VAEs see."""
    array = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1)


def build(
    pipeline: Any,
    samples: Sequence[Sample],
    directory: Path,
    *,
    resolution: int,
    max_text_tokens: int | None,
    on_progress: OnProgress = lambda done, total: None,
) -> TrainingSamples:
    """Encode what `directory` does not hold yet and return the samples, memory-mapped.

    A cache that was left half-filled, or made of other samples or for another resolution, is made again.
    """
    directory.mkdir(parents=True, exist_ok=True)
    images = {sample.digest: sample.open for sample in samples}
    captions = list(dict.fromkeys(["", *(sample.caption for sample in samples)]))
    total = len(images) + len(captions)
    made_of = _digest(resolution, max_text_tokens, sorted(images), captions)
    if _made_of(directory) != made_of:
        with _filling(directory, made_of):
            _encode_all_images(pipeline.vae, images, directory, resolution, lambda done: on_progress(done, total))
            _encode_all_captions(
                pipeline,
                captions,
                directory,
                t5_tokens(pipeline, max_text_tokens),
                lambda done: on_progress(len(images) + done, total),
            )
    return _open(directory, samples, list(images), captions)


def _encode_all_images(
    vae: Any,
    images: Mapping[str, Callable[[], Image.Image]],
    directory: Path,
    resolution: int,
    on_done: Callable[[int], None],
) -> None:
    files: dict[str, Tensor] = {}
    done = 0
    at_once = max(1, min(_BATCH, _BATCH_PIXELS // resolution**2))
    for part in _batches(list(images.values()), at_once):
        pixels = torch.stack([to_pixels(fit(read(), resolution, resolution)) for read in part])
        mean, std = encode_images(vae, pixels)
        if not files:
            files = _new_file(directory / "latents.safetensors", len(images), {"mean": mean[0], "std": std[0]})
        files["mean"][done : done + len(part)] = mean.to("cpu", files["mean"].dtype)
        files["std"][done : done + len(part)] = std.to("cpu", files["std"].dtype)
        done += len(part)
        on_done(done)


def _encode_all_captions(
    pipeline: Any, captions: list[str], directory: Path, t5_length: int, on_done: Callable[[int], None]
) -> None:
    files: dict[str, Tensor] = {}
    done = 0
    for part in _batches(captions, _BATCH):
        embeds, pooled = encode_captions(pipeline, part, t5_length)
        if not files:
            rows = {"prompt_embeds": embeds[0], "pooled": pooled[0]}
            files = _new_file(directory / "captions.safetensors", len(captions), rows)
        files["prompt_embeds"][done : done + len(part)] = embeds.to("cpu", files["prompt_embeds"].dtype)
        files["pooled"][done : done + len(part)] = pooled.to("cpu", files["pooled"].dtype)
        done += len(part)
        on_done(done)


def _open(directory: Path, samples: Sequence[Sample], digests: list[str], captions: list[str]) -> TrainingSamples:
    latents = load_file(directory / "latents.safetensors")
    texts = load_file(directory / "captions.safetensors")
    latent_row = {digest: row for row, digest in enumerate(digests)}
    caption_row = {caption: row for row, caption in enumerate(captions)}
    return TrainingSamples(
        mean=latents["mean"],
        std=latents["std"],
        prompt_embeds=texts["prompt_embeds"],
        pooled=texts["pooled"],
        latent_rows=torch.tensor([latent_row[sample.digest] for sample in samples]),
        caption_rows=torch.tensor([[caption_row[sample.caption]] for sample in samples]),
        empty_row=caption_row[""],
    )


def _new_file(path: Path, rows: int, examples: dict[str, Tensor]) -> dict[str, Tensor]:
    """A safetensors file of zeros, `rows` rows like each of the examples in its precision, as writable mapped
    tensors.

    The format is a length, a JSON header, then the bytes: known before the first row is, so it can be filled
    in place.
    """
    header, offset = {}, 0
    for name, example in examples.items():
        size = rows * example.numel() * example.element_size()
        header[name] = {
            "dtype": {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[example.dtype],
            "shape": [rows, *example.shape],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        start = file.tell()
        file.truncate(start + offset)
    return {
        name: _mapped(path, start + header[name]["data_offsets"][0], [rows, *example.shape], example.dtype)
        for name, example in examples.items()
    }


def _mapped(path: Path, offset: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    raw = np.memmap(path, dtype=np.uint8, mode="r+", offset=offset, shape=(size,))
    return torch.from_numpy(raw).view(dtype).view(shape)


@contextmanager
def _filling(directory: Path, made_of: str) -> Iterator[None]:
    """Mark the cache as complete only when it is."""
    mark = directory / "complete.json"
    mark.unlink(missing_ok=True)
    yield
    mark.write_text(json.dumps({"made_of": made_of}))


def _made_of(directory: Path) -> str | None:
    mark = directory / "complete.json"
    return str(json.loads(mark.read_text())["made_of"]) if mark.exists() else None


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
