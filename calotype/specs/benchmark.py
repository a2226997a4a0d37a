"""Benchmarks: contenders measured side by side on one's own data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from calotype.jobs import Family
from calotype.specs.common import Adapter, DatasetRef, ModelRef, Request, Seed, Strict
from calotype.specs.gan import TruncationPsi

#: fd: Fréchet distance, named after its backbone; kid: kernel distance with an interval.
Metric = Literal["latency", "throughput", "memory", "fd", "kid"]
METRICS: tuple[Metric, ...] = ("latency", "throughput", "memory", "fd", "kid")


class Contender(Strict):
    """One model in one configuration."""

    family: Literal["diffusion", "gan"]
    model: ModelRef
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    """What the report calls it; the model's name when null."""
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=8, strict=False)
    """Diffusion only."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Diffusion only: sampling steps; the model's own number when null."""
    guidance_scale: float | None = Field(default=None, ge=0.0, le=50.0)
    """Diffusion only: classifier-free guidance; the model's own when null."""
    truncation_psi: TruncationPsi | None = None
    """GAN only; the model's own when null."""

    @model_validator(mode="after")
    def _has_what_its_family_knows(self) -> Self:
        foreign = ("adapters", "steps", "guidance_scale") if self.family == "gan" else ("truncation_psi",)
        for name in foreign:
            if getattr(self, name) not in (None, ()):
                raise ValueError(f"{name} has no meaning for the {self.family} family; leave it out")
        return self


class BenchmarkInput(Strict):
    """Who is compared, against which images, by what."""

    contenders: tuple[Contender, ...] = Field(min_length=1, max_length=8, strict=False)
    dataset: DatasetRef
    """Held-out images: the reference of the distances. Their captions are the prompts of diffusion models, their
    labels say how often a GAN shows each of its classes."""
    num_samples: int = Field(default=1000, ge=2, le=100_000)
    """Images made of each contender."""
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=256)], ...] = Field(
        default=(1, 8), min_length=1, max_length=8, strict=False
    )
    """Latency and throughput are measured at each."""
    timed_batches: int = Field(default=20, ge=3, le=10_000)
    """Timed calls at each batch size; a p99 needs 1,000 calls behind it."""
    metrics: tuple[Metric, ...] = Field(default=METRICS, min_length=1, strict=False)
    seed: Seed | None = None
    gpu_hour_usd: float | None = Field(default=None, gt=0, le=10_000)
    """Price of one device-hour; adds cost per million images."""

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        names = [contender.name or contender.model for contender in self.contenders]
        if len(set(names)) != len(names):
            raise ValueError("two contenders have the same name; give each a name of its own")
        if len(set(self.batch_sizes)) != len(self.batch_sizes):
            raise ValueError("a batch size is listed twice")
        if len(set(self.metrics)) != len(self.metrics):
            raise ValueError("a metric is listed twice")
        return self


class Benchmark(Request):
    """Compares models on one's own data."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "benchmark",
                    "input": {
                        "contenders": [
                            {"family": "diffusion", "model": "starter-diffusion"},
                            {"family": "gan", "model": "starter-gan"},
                        ],
                        "dataset": "starter-logos-heldout",
                        "num_samples": 100,
                    },
                }
            ]
        }
    )

    kind: Literal["benchmark"]
    input: BenchmarkInput

    @property
    def family(self) -> Family:
        """The first contender's: every worker that measures can run them all."""
        return Family(self.input.contenders[0].family)
