"""A registered version as a generator, ready to run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from calotype.errors import JobFailed
from calotype.registry import ModelVersion
from worker.context import JobContext
from worker.families.gan.sampling import Sampler, make_sampler
from worker.families.gan.stored import StoredGenerator, UnreadableVersion, load_generator


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A generator in memory."""

    stored: StoredGenerator
    sampler: Sampler
    device: torch.device
    #: What its highest resolutions are computed in.
    dtype: torch.dtype
    #: Whether torch.compile has made it over.
    compiled: bool


def load(ctx: JobContext, version: ModelVersion) -> Loaded:
    """The generator, from memory where it is loaded already. Raises JobFailed `model_unavailable`."""
    device, dtype, compiled = ctx.device, inference_dtype(ctx.device), ctx.settings.compile_gans == "yes"

    def loader() -> tuple[Loaded, int]:
        try:
            stored = load_generator(ctx.models.directory(version), device)
        except UnreadableVersion as exc:
            detail = f"{version.ref} cannot be read: {exc}."
            raise JobFailed("model_unavailable", "The model cannot be run", detail, retryable=False) from exc
        sampler = make_sampler(stored.generator, _other(dtype), compiled=compiled)
        loaded = Loaded(stored=stored, sampler=sampler, device=device, dtype=dtype, compiled=compiled)
        return loaded, stored.bytes

    return ctx.models.load(version.key, loader)


def inference_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU (not tested here: no GPU), fp32 on a CPU, where bf16 gains little and costs quality."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def class_number(loaded: Loaded, label: str | None) -> int | None:
    """The place of a label in the one-hot; None for none. Raises JobFailed `bad_input`, naming the labels."""
    if label is None:
        return None
    labels = loaded.stored.labels or []
    if label in labels:
        return labels.index(label)
    known = f"it has: {', '.join(labels[:50])}" if labels else "it knows none"
    detail = f"The model has no label {label!r}; {known}."
    raise JobFailed("bad_input", "There is no such label", detail, retryable=False)


def _other(dtype: torch.dtype) -> torch.dtype | None:
    """None: compute in the parameters' dtype."""
    return None if dtype == torch.float32 else dtype
