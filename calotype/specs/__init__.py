"""What may be asked: one pydantic model a kind and family. Input is rejected, never repaired."""

from calotype.specs.benchmark import METRICS, Benchmark, BenchmarkInput, Contender
from calotype.specs.common import MAX_SEED, Adapter, Request
from calotype.specs.diffusion import (
    DiffusionGenerate,
    DiffusionGenerateInput,
    DiffusionTrain,
    DiffusionTrainInput,
)
from calotype.specs.gan import GanGenerate, GanGenerateInput, Interpolation, StyleMixing
from calotype.specs.gan_train import GanTrain, GanTrainInput, ModeCollapse
from calotype.specs.request import JobRequest, parse, request_schemas

__all__ = [
    "MAX_SEED",
    "METRICS",
    "Adapter",
    "Benchmark",
    "BenchmarkInput",
    "Contender",
    "DiffusionGenerate",
    "DiffusionGenerateInput",
    "DiffusionTrain",
    "DiffusionTrainInput",
    "GanGenerate",
    "GanGenerateInput",
    "GanTrain",
    "GanTrainInput",
    "Interpolation",
    "JobRequest",
    "ModeCollapse",
    "Request",
    "StyleMixing",
    "parse",
    "request_schemas",
]
