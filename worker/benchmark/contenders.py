"""Who is measured. A contender is a model in one configuration; each family says how its models are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from PIL import Image

from calotype import specs
from calotype.jobs import Family
from calotype.sizes import Sizes
from worker.context import JobContext

#: Called with the share of a call that is done, 0 to 1; may raise to stop it.
OnProgress = Callable[[float], None]


class Contender(Protocol):
    """What a measurement needs of a model."""

    name: str
    #: What it computes in: decides which peak of the device counts.
    dtype: torch.dtype

    def describe(self) -> dict[str, Any]:
        """The configuration, for people and for repeating it."""

    def fetch(self) -> None:
        """Bring the files to this node, so that loading measures no network."""

    def load(self) -> None:
        """From files to a model on the device."""

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], on_progress: OnProgress) -> list[Image.Image]:
        """One call that makes an RGB image for each prompt and seed; an image depends on its own seed only."""

    def unload(self) -> None:
        """Drop whatever is loaded: before `load`, so that loading is cold, and afterwards to free the memory."""


class DiffusionContender:
    """A text-to-image pipeline with its adapters, steps and guidance, at the model's own size."""

    def __init__(self, ctx: JobContext, spec: specs.Contender) -> None:
        # diffusers takes seconds to import: only a benchmark of this family pays for it.
        from worker.families.diffusion import load

        self._ctx, self._spec = ctx, spec
        self._loaded: load.Loaded | None = None
        self.name = spec.name or spec.model
        self.dtype = load.inference_dtype(ctx.device)
        self._version = ctx.resolve(spec.model)
        self._base = load.base_of(ctx, self._version)
        parameters = self._base.parameters
        sizes = Sizes.of(parameters)
        self._width, self._height = sizes.default_width, sizes.default_height
        self._steps = int(parameters.get("default_steps", 28) if spec.steps is None else spec.steps)
        guidance = spec.guidance_scale
        self._guidance = float(parameters.get("default_guidance_scale", 3.5) if guidance is None else guidance)

    def describe(self) -> dict[str, Any]:
        return {
            "family": str(self._spec.family),
            "model": self._version.ref,
            "adapters": [adapter.model_dump(mode="json") for adapter in self._spec.adapters],
            "steps": self._steps,
            "guidance_scale": self._guidance,
            "width": self._width,
            "height": self._height,
            "dtype": str(self.dtype).removeprefix("torch."),
            "licence": self._version.licence,
        }

    def fetch(self) -> None:
        adapters = [self._ctx.resolve(adapter.model) for adapter in self._spec.adapters]
        for version in (self._version, self._base, *adapters):
            self._ctx.models.directory(version)

    def load(self) -> None:
        from worker.families.diffusion.load import load_pipeline

        self._loaded = load_pipeline(self._ctx, self._spec.model, self._spec.adapters)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], on_progress: OnProgress) -> list[Image.Image]:
        from worker.families.diffusion.sampling import generate_images

        if self._loaded is None:
            raise RuntimeError("load() comes before generate()")
        return generate_images(
            self._loaded,
            prompts,
            seeds,
            width=self._width,
            height=self._height,
            steps=self._steps,
            guidance_scale=self._guidance,
            on_step=lambda done, total: on_progress(done / total),
        )

    def unload(self) -> None:
        self._loaded = None
        self._ctx.models.clear()


def _gan_contender(ctx: JobContext, spec: specs.Contender) -> Contender:
    from worker.benchmark.gan_contender import GanContender

    return GanContender(ctx, spec)


#: How a family's contenders are made.
FAMILIES: Final[dict[Family, Callable[[JobContext, specs.Contender], Contender]]] = {
    Family.DIFFUSION: DiffusionContender,
    Family.GAN: _gan_contender,
}

#: Families whose models are told by words what to show.
PROMPTED: Final = frozenset({Family.DIFFUSION})


def make_contender(ctx: JobContext, spec: specs.Contender) -> Contender:
    """The contender that a spec names. Raises JobFailed `model_unavailable` when its model is gone."""
    return FAMILIES[Family(spec.family)](ctx, spec)
