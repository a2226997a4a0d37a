"""What a training leaves behind: the version, the files and the result of its job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch import nn

from calotype.gan_description import registry_parameters
from calotype.registry import ModelVersion
from calotype.specs.gan_train import GanTrainInput
from worker.benchmark.quality import fd_caveats
from worker.context import JobContext, NewModel, Output
from worker.families.diffusion.memory import device_name, peak_memory_bytes
from worker.families.gan import stored
from worker.families.gan.collapse_plot import collapse_chart
from worker.families.gan.course import Course
from worker.families.gan.curve import frechet_chart, loss_curve
from worker.families.gan.data import TrainingImages
from worker.families.gan.snapshots import Snapshot
from worker.families.gan.trainer import Trainer

#: How results name the curve: after its backbone.
METRIC: Final = "FD-EfficientNet-lite0"
#: Values of a feature of that backbone.
_FEATURES: Final = 1280
#: Truncation that a StyleGAN3 is sampled with if nobody asks for another.
_TRUNCATION_PSI: Final = 0.7


@dataclass(kw_only=True)
class Training:
    """One job's training and what it is made of."""

    ctx: JobContext
    spec: GanTrainInput
    #: The version that it started from.
    version: ModelVersion | None
    images: TrainingImages
    course: Course
    #: Seconds of training that earlier workers spent on what is in the checkpoint.
    seconds_before: float = 0.0
    started: float = 0.0
    resumed_from: int | None = None

    @property
    def trainer(self) -> Trainer:
        return self.course.trainer

    @property
    def seconds(self) -> float:
        """Of training so far, by all workers."""
        return self.seconds_before + time.perf_counter() - self.started


def save_model(training: Training) -> Path:
    """The best snapshot's networks, which the course has put back."""
    directory, trainer = training.ctx.workdir / "model", training.trainer
    stored.save_version(
        directory,
        trainer.ema.model,
        labels=training.images.labels or None,
        provenance=_source(training),
        licence=_licence(training),
        live_generator=trainer.generator,
        discriminator=trainer.discriminator,
    )
    return directory


def _licence(training: Training) -> dict[str, Any] | None:
    """That of the version it started from: training further does not change it."""
    if training.version is None:
        return None
    licence = stored.read_description(training.ctx.models.directory(training.version)).licence
    return None if licence is None else licence.model_dump()


def _source(training: Training) -> dict[str, Any]:
    best = _best(training)
    return {
        "type": "train",
        "method": "gan",
        "architecture": training.spec.architecture,
        "model": None if training.version is None else training.version.ref,
        "dataset": training.spec.dataset,
        "steps": best.step,
        "kimg": best.kimg,
    }


def new_model(training: Training, directory: Path) -> NewModel:
    """The version to register."""
    description, version = stored.read_description(directory), training.version
    return NewModel(
        name=training.spec.output_model,
        family="gan",
        architecture=description.architecture,
        base=None,
        licence=None if version is None else version.licence,
        parameters=registry_parameters(description, _TRUNCATION_PSI),
        source=_source(training),
        directory=directory,
    )


def outputs_of(training: Training, result: Mapping[str, Any]) -> list[Output]:
    """The grids of all snapshots, and the charts."""
    outputs = []
    for path in training.course.snapshots.grids():
        with Image.open(path) as grid:
            outputs.append(Output(f"snapshot-{path.name}", path, "image/png", width=grid.width, height=grid.height))
    stopped = result["stopped"]
    charts = {
        "frechet.png": frechet_chart(
            result["frechet"]["curve"],
            metric=METRIC,
            best_step=result["frechet"]["best_step"],
            stopped_at=None if stopped is None else stopped["step"],
        )
    }
    if result["mode_collapse"] and result["mode_collapse"]["checks"]:
        charts["mode-collapse.png"] = collapse_chart(result["mode_collapse"]["checks"])
    for name, content in charts.items():
        path = training.ctx.workdir / name
        path.write_bytes(content)
        outputs.append(Output(name, path, "image/png"))
    return outputs


def result_of(training: Training) -> dict[str, Any]:
    """What the job's result says, JSON-able."""
    trainer, spec, device = training.trainer, training.spec, training.ctx.device
    watch, stopped, seconds = training.course.watch, training.course.stopped, training.seconds
    return {
        "architecture": spec.architecture,
        "resolution": spec.resolution,
        "labels": list(training.images.labels) or None,
        "started_from": None if training.version is None else training.version.ref,
        "steps": trainer.step_count,
        "kimg": trainer.images_seen / 1000,
        "batch_size": spec.batch_size,
        "micro_batch_size": trainer.split.micro_batch_size,
        "samples": len(training.images),
        "trained_parameters": {
            "generator": _size(trainer.generator),
            "discriminator": _size(trainer.discriminator),
        },
        "resumed_from": training.resumed_from,
        "stopped": None if stopped is None else asdict(stopped),
        "loss": loss_curve(trainer.losses),
        "augment_p": trainer.p,
        "frechet": _frechet(training),
        "mode_collapse": None if watch is None else watch.result(),
        "train_seconds": round(seconds, 3),
        "gpu_seconds": round(seconds * trainer.replicas.count, 3) if device.type == "cuda" else 0.0,
        "devices": trainer.replicas.count,
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": device_name(device),
    }


def _frechet(training: Training) -> dict[str, Any]:
    """The curve, and the snapshot that was chosen by it."""
    generated = training.spec.frechet_samples
    real = min(generated, len(training.images))
    best = _best(training)
    return {
        "metric": METRIC,
        "samples": generated,
        "real_samples": real,
        "caveats": fd_caveats(generated, real, _FEATURES),
        "curve": [
            {"step": one.step, "kimg": one.kimg, "value": one.frechet} for one in training.course.snapshots.taken
        ],
        "best_step": best.step,
        "best": best.frechet,
    }


def _best(training: Training) -> Snapshot:
    best = training.course.snapshots.best
    if best is None:
        raise ValueError("a training that has ended has a snapshot: of its last step, or of one before it stopped")
    return best


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
