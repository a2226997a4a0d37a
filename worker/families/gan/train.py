"""The handler of `gan.train`: a dataset in, a new version of a model out, with the way there.

A training survives what happens to its worker. Checkpoints hold the whole state (see `state.py`), the snapshots and
what the watch has seen; a worker that shuts down writes one more at the step it is at.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch import nn

from calotype.gan_description import registry_parameters
from calotype.registry import ModelVersion
from calotype.specs.gan_train import GanTrain, GanTrainInput
from worker.benchmark.quality import fd_caveats
from worker.context import HandlerResult, JobContext, NewModel, Output, ShuttingDown
from worker.families.diffusion.memory import device_name, peak_memory_bytes, reset_peak_memory
from worker.families.gan import data, stored
from worker.families.gan.collapse import Action, CollapseSettings, CollapseWatch
from worker.families.gan.collapse_plot import collapse_chart
from worker.families.gan.course import Course, Plan
from worker.families.gan.curve import frechet_chart, loss_curve
from worker.families.gan.data import TrainingImages
from worker.families.gan.evaluation import Evaluation
from worker.families.gan.recipe import (
    Networks,
    fresh_networks,
    given,
    snapshot_interval,
    train_settings,
    transferred_networks,
)
from worker.families.gan.reporting import Report
from worker.families.gan.snapshots import Snapshot, Snapshots
from worker.families.gan.trainer import Trainer

#: How results name the curve: after its backbone.
METRIC: Final = "FD-EfficientNet-lite0"
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


def run(ctx: JobContext) -> HandlerResult:
    """Train, keep checkpoints and snapshots, register the best."""
    request = ctx.spec
    if not isinstance(request, GanTrain):
        raise TypeError(f"gan.train was given a {type(request).__name__}")
    begun = time.perf_counter()
    training = _prepare(ctx, request)
    _resume(training)
    training.started = time.perf_counter()
    try:
        training.course.run()
    except ShuttingDown:
        # Another worker goes on from this very step.
        _checkpoint(training)
        raise
    directory = _save_model(training)
    result = _result(training) | {
        "prepare_seconds": round(training.started - begun, 3),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return HandlerResult(_outputs(training, result), result, _new_model(training, directory))


def _prepare(ctx: JobContext, request: GanTrain) -> Training:
    """Everything that comes before the first step."""
    spec = request.input
    version = None if request.model is None else ctx.resolve(request.model)
    # Training is the largest user of memory there is; what earlier jobs left loaded makes way.
    ctx.models.clear()
    reset_peak_memory(ctx.device)
    images = _images(ctx, spec)
    trainer = _trainer(ctx, spec, version, images)
    ctx.log(
        f"training a {spec.architecture} of {spec.resolution} pixels on {len(images)} images"
        + (f" of {len(images.labels)} classes" if images.labels else "")
    )
    evaluation = Evaluation(images, seed=given(spec)["seed"], device=ctx.device, pulse=ctx.check)
    course = Course(
        trainer,
        evaluation,
        Snapshots(ctx.workdir / "snapshots"),
        _watch(spec),
        _plan(spec),
        Report(ctx, trainer, METRIC),
        pulse=ctx.check,
        checkpoint=lambda: _checkpoint(training),
    )
    training = Training(ctx=ctx, spec=spec, version=version, images=images, course=course)
    return training


def _images(ctx: JobContext, spec: GanTrainInput) -> TrainingImages:
    def on_progress(done: int, total: int) -> None:
        ctx.progress(done, total, "reading images")
        ctx.check()

    with ctx.dataset(spec.dataset) as archive:
        return data.build(
            archive,
            ctx.workdir / "images.u8",
            resolution=given(spec)["resolution"],
            resize=spec.resize,
            conditional=given(spec)["conditional"],
            batch_size=spec.batch_size,
            on_progress=on_progress,
        )


def _trainer(ctx: JobContext, spec: GanTrainInput, version: ModelVersion | None, images: TrainingImages) -> Trainer:
    networks = _networks(ctx, spec, version, images)
    for remark in networks.remarks:
        ctx.log(remark)
    settings = train_settings(spec, transferred=version is not None)
    return Trainer(
        networks.generator,
        networks.discriminator,
        images,
        settings,
        averaged=networks.averaged,
        device=ctx.device,
        log=ctx.log,
    )


def _networks(ctx: JobContext, spec: GanTrainInput, version: ModelVersion | None, images: TrainingImages) -> Networks:
    if version is None:
        return fresh_networks(spec, len(images.labels))
    return transferred_networks(ctx.models.directory(version), version.ref, spec, images.labels)


def _watch(spec: GanTrainInput) -> CollapseWatch | None:
    asked = spec.mode_collapse
    if asked is None:
        return None
    return CollapseWatch(
        CollapseSettings(
            action=Action(asked.action),
            every_steps=asked.every_steps,
            patience=asked.patience,
            warmup_steps=asked.warmup_steps,
        )
    )


def _plan(spec: GanTrainInput) -> Plan:
    return Plan(
        snapshot_every=snapshot_interval(spec),
        checkpoint_every=spec.checkpoint_every,
        frechet_samples=spec.frechet_samples,
        watch_samples=spec.mode_collapse.samples if spec.mode_collapse is not None else 0,
    )


def _resume(training: Training) -> None:
    """Go on from the job's checkpoint, if it has one that fits."""
    found = training.ctx.load_checkpoint()
    if found is None:
        return
    path, step = found
    try:
        course = json.loads((path / "course.json").read_text())
        seconds = float(json.loads((path / "clock.json").read_text())["seconds"])
        training.trainer.load(path / "state")
    except (OSError, ValueError, KeyError) as error:
        # Rather hours again than a result that is not what was asked for.
        training.ctx.log(f"the checkpoint of step {step} does not fit ({error}): starting again")
        return
    if (path / "snapshots").is_dir():
        shutil.copytree(path / "snapshots", training.course.snapshots.folder, dirs_exist_ok=True)
    training.course.load_state_dict(course)
    training.seconds_before, training.resumed_from = seconds, step
    training.ctx.log(f"resumed at step {step}")


def _checkpoint(training: Training) -> None:
    directory, snapshots = training.ctx.workdir / "checkpoint-out", training.course.snapshots.folder
    training.trainer.save(directory / "state")
    if snapshots.is_dir():
        shutil.copytree(snapshots, directory / "snapshots", dirs_exist_ok=True)
    (directory / "course.json").write_text(json.dumps(training.course.state_dict(), indent=1))
    # Apart: it is the one thing that an undisturbed run does not have in common with a resumed one.
    (directory / "clock.json").write_text(json.dumps({"seconds": training.seconds}))
    training.ctx.save_checkpoint(directory, training.trainer.step_count)


def _save_model(training: Training) -> Path:
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


def _new_model(training: Training, directory: Path) -> NewModel:
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


def _outputs(training: Training, result: Mapping[str, Any]) -> list[Output]:
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


def _result(training: Training) -> dict[str, Any]:
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
        "gpu_seconds": round(seconds, 3) if device.type == "cuda" else 0.0,
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
        "caveats": fd_caveats(generated, real, 1280),
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
