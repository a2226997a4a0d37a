"""A registered version as a diffusers pipeline, ready to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from diffusers import StableDiffusion3Pipeline

from calotype.errors import JobFailed
from calotype.registry import ModelVersion
from calotype.specs import Adapter
from worker.context import JobContext
from worker.families.diffusion import cache, lora

#: Which pipeline runs which architecture. A fixed table: what a model's own files name is never imported.
PIPELINES: Final[dict[str, Any]] = {"sd3": StableDiffusion3Pipeline}

#: The architecture of an adapter.
LORA: Final = "lora"

#: Components that a version may lack. diffusers wants them passed as None then.
_OPTIONAL: Final = ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor")


@dataclass(kw_only=True)
class Loaded:
    """A pipeline in memory."""

    pipeline: Any
    device: torch.device
    #: What the denoiser computes in.
    dtype: torch.dtype
    #: The pipeline's `max_sequence_length`.
    t5_tokens: int
    #: The adapters laid over it: (name, directory, scale). None: unknown, since laying them on failed half-way.
    adapters: tuple[tuple[str, Path, float], ...] | None = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which files are to be loaded."""

    base: ModelVersion
    #: With their scales, in the order in which they lie over the base.
    adapters: tuple[tuple[ModelVersion, float], ...]

    @property
    def key(self) -> tuple[str, tuple[tuple[str, float], ...]]:
        """Equal for the same files, laid over each other alike."""
        return self.base.key, tuple((version.key, scale) for version, scale in self.adapters)


def load_pipeline(ctx: JobContext, ref: str, adapters: Sequence[Adapter] = ()) -> Loaded:
    """The pipeline of version `ref` with its adapters: `plan`, then `load`."""
    return load(ctx, plan(ctx, ref, adapters))


def plan(ctx: JobContext, ref: str, adapters: Sequence[Adapter] = ()) -> Plan:
    """What the job's tenant means by a version and adapters.

    `ref` may itself be an adapter: its base is loaded then and it comes first. Raises JobFailed
    `model_unavailable` where a version is gone, and `bad_input` where an adapter belongs to another model.
    """
    version = ctx.resolve(ref)
    base = base_of(ctx, version)
    return Plan(base=base, adapters=tuple(_adapters(ctx, base, version, adapters)))


def load(ctx: JobContext, files: Plan) -> Loaded:
    """The pipeline, from memory where it is loaded already, with exactly these adapters over it.

    Raises JobFailed `model_unavailable` where a version cannot be run.
    """
    base, device, dtype = files.base, ctx.device, inference_dtype(ctx.device)

    def loader() -> tuple[Loaded, int]:
        pipeline = open_pipeline(ctx.models.directory(base), base, dtype).to(device)
        tokens = cache.t5_tokens(pipeline, base.parameters.get("max_text_tokens"))
        return Loaded(pipeline=pipeline, device=device, dtype=dtype, t5_tokens=tokens), size_of(pipeline)

    loaded = ctx.models.load(base.key, loader)
    # The same adapter may come twice, and diffusers wants names of their own that torch accepts for modules.
    wanted = tuple(
        (f"adapter_{position}_{_short(version.ref)}", ctx.models.directory(version), scale)
        for position, (version, scale) in enumerate(files.adapters)
    )
    lay_on(loaded, wanted)
    return loaded


def lay_on(loaded: Loaded, wanted: tuple[tuple[str, Path, float], ...]) -> None:
    """Lay exactly these adapters (name, directory, scale) over a pipeline, unless it has them already."""
    if loaded.adapters == wanted:
        return
    # Equal to nothing, the empty tuple included: should this fail half-way, the next job takes off what is left.
    loaded.adapters = None
    lora.activate(loaded.pipeline, wanted)
    loaded.adapters = wanted


def base_of(ctx: JobContext, version: ModelVersion) -> ModelVersion:
    """The complete model that a version is or belongs to."""
    if version.architecture != LORA:
        return version
    if version.base is None:
        raise _unavailable(f"{version.ref} is an adapter but does not say of which model.")
    return ctx.resolve(version.base)


def inference_dtype(device: torch.device) -> torch.dtype:
    """bf16 on a GPU (not tested here: no GPU), fp32 on a CPU, where bf16 gains little and costs quality."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def open_pipeline(directory: Path, version: ModelVersion, dtype: torch.dtype) -> Any:
    """Read a pipeline from a version's files: safetensors only, nothing from a network. On the CPU."""
    pipeline_class = PIPELINES.get(version.architecture)
    if pipeline_class is None:
        known = ", ".join(PIPELINES)
        raise _unavailable(f"{version.ref} has the architecture {version.architecture!r}; known here: {known}.")
    # A worker's log is no place for progress bars.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        index = json.loads((directory / "model_index.json").read_text())
        absent = {name: None for name in _OPTIONAL if not (index.get(name) or [None])[0]}
        pipeline = pipeline_class.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True, **absent
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unavailable(f"{version.ref} cannot be read as a {pipeline_class.__name__}: {error}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def size_of(pipeline: Any) -> int:
    """Bytes of a pipeline's weights in memory."""
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _adapters(
    ctx: JobContext, base: ModelVersion, version: ModelVersion, adapters: Sequence[Adapter]
) -> list[tuple[ModelVersion, float]]:
    chosen = [(version, 1.0)] if version.architecture == LORA else []
    chosen += [(ctx.resolve(adapter.model), adapter.scale) for adapter in adapters]
    for adapter, _ in chosen:
        if adapter.architecture != LORA or adapter.base != base.ref:
            raise JobFailed(
                "bad_input",
                "An adapter does not fit",
                f"{adapter.ref} is {f'an adapter of {adapter.base}' if adapter.base else 'no adapter'}; "
                f"the model is {base.ref}.",
                retryable=False,
            )
    return chosen


def _short(ref: str) -> str:
    return hashlib.sha256(ref.encode()).hexdigest()[:12]


def _unavailable(detail: str) -> JobFailed:
    return JobFailed("model_unavailable", "The model cannot be run", detail, retryable=False)
