"""A GAN as a contender."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from calotype import specs
from calotype.errors import JobFailed
from worker.benchmark.contenders import OnProgress
from worker.context import JobContext
from worker.families.gan.load import Loaded, inference_dtype, load
from worker.families.gan.sampling import to_images


class GanContender:
    """A generator with a truncation. It reads no prompts; its classes come as often as in the dataset."""

    def __init__(self, ctx: JobContext, spec: specs.Contender) -> None:
        self._ctx = ctx
        self._loaded: Loaded | None = None
        self.name = spec.name or spec.model
        self.dtype = inference_dtype(ctx.device)
        self._version = ctx.resolve(spec.model)
        psi = spec.truncation_psi
        self._psi = float(self._version.parameters["default_truncation_psi"] if psi is None else psi)
        self._classes = ClassDraw.of(self._version.parameters["labels"], _labels_of(ctx))

    def describe(self) -> dict[str, Any]:
        return {
            "family": "gan",
            "model": self._version.ref,
            "architecture": self._version.architecture,
            "truncation_psi": self._psi,
            "prompts": "ignored",
            "labels": self._classes.rule,
            "width": self._version.parameters["default_width"],
            "height": self._version.parameters["default_height"],
            "dtype": str(self.dtype).removeprefix("torch."),
            "compiled": self._ctx.settings.compile_gans == "yes",
            "licence": self._version.licence,
        }

    def fetch(self) -> None:
        self._ctx.models.directory(self._version)

    def load(self) -> None:
        self._loaded = load(self._ctx, self._version)

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], on_progress: OnProgress) -> list[Image.Image]:
        """One call of the network, however many images. Raises JobFailed `numerical_error`."""
        if self._loaded is None:
            raise RuntimeError("load() comes before generate()")
        sampler = self._loaded.sampler
        points = sampler.points(seeds, self._classes.draw(seeds), self._psi)
        images = [image for image in to_images(sampler.images(points)) if image is not None]
        if len(images) < len(seeds):
            detail = f"An image of {self._version.ref} is not finite: its weights are damaged."
            raise JobFailed("numerical_error", "The model gave no numbers", detail, retryable=False)
        on_progress(1.0)
        return images

    def unload(self) -> None:
        self._loaded = None
        self._ctx.models.clear()


class ClassDraw:
    """Which class an image shows, by its seed alone."""

    def __init__(self, shares: np.ndarray[Any, np.dtype[np.float64]] | None, rule: str | None) -> None:
        self._shares = shares
        #: In words, for the result; None for a model without classes.
        self.rule = rule

    @classmethod
    def of(cls, labels: Sequence[str] | None, dataset: Iterable[str | None]) -> ClassDraw:
        """For a model's labels, as often as a dataset has them."""
        if not labels:
            return cls(None, None)
        counts = Counter(dataset)
        found = np.array([counts[label] for label in labels], dtype=np.float64)
        if not found.any():
            return cls(
                np.full(len(labels), 1 / len(labels)), "drawn evenly: the dataset has none of the model's labels"
            )
        return cls(found / found.sum(), "drawn as often as in the dataset")

    def draw(self, seeds: Sequence[int]) -> list[int] | None:
        """Numbers of classes, one a seed; None for a model without classes."""
        if self._shares is None:
            return None
        return [int(np.random.default_rng(seed).choice(len(self._shares), p=self._shares)) for seed in seeds]


def _labels_of(ctx: JobContext) -> list[str | None]:
    spec = ctx.spec
    if not isinstance(spec, specs.Benchmark):
        raise TypeError(f"a benchmark was given a {type(spec).__name__}")
    with ctx.dataset(spec.input.dataset) as archive:
        return [item.label for item in archive.items]
