"""The handler of `gan.train`: a dataset in, a new version of a model out, with the way there.

A training survives what happens to its worker. Checkpoints hold the whole state (see `state.py`), the snapshots and
what the watch has seen; a worker that shuts down writes one more at the step it is at.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from calotype.registry import ModelVersion
from calotype.specs.gan_train import GanTrain, GanTrainInput
from worker.context import HandlerResult, JobContext, ShuttingDown
from worker.families.diffusion.memory import reset_peak_memory
from worker.families.gan import data, team
from worker.families.gan.collapse import Action, CollapseSettings, CollapseWatch
from worker.families.gan.course import Course, Timetable
from worker.families.gan.data import TrainingImages
from worker.families.gan.evaluation import Evaluation
from worker.families.gan.recipe import build_trainer, given, groups_of, snapshot_interval
from worker.families.gan.reporting import Report
from worker.families.gan.result import METRIC, Training, new_model, outputs_of, result_of, save_model
from worker.families.gan.snapshots import Snapshots


def run(ctx: JobContext) -> HandlerResult:
    """Train, keep checkpoints and snapshots, register the best."""
    request = ctx.spec
    if not isinstance(request, GanTrain):
        raise TypeError(f"gan.train was given a {type(request).__name__}")
    begun = time.perf_counter()
    version = None if request.model is None else ctx.resolve(request.model)
    # Training is the largest user of memory there is; what earlier jobs left loaded makes way.
    ctx.models.clear()
    reset_peak_memory(ctx.device)
    plan = _plan(ctx, request.input, version)
    count = team.devices(ctx.device, groups_of(request.input), ctx.settings.train_devices)
    with team.gathered(count, plan, ctx.workdir / "team", ctx.device) as together:
        training = _training(ctx, plan, version, together)
        _resume(training)
        training.started = time.perf_counter()
        with ctx.tracked(training.trainer.step_count):
            try:
                training.course.run()
            except ShuttingDown:
                # Another worker goes on from this very step.
                _checkpoint(training)
                raise
    return _finish(training, begun)


def _finish(training: Training, begun: float) -> HandlerResult:
    directory = save_model(training)
    result: dict[str, Any] = result_of(training) | {
        "prepare_seconds": round(training.started - begun, 3),
        "seconds": round(time.perf_counter() - begun, 3),
    }
    outputs = outputs_of(training, result) + training.ctx.tracked_outputs()
    return HandlerResult(outputs, result, new_model(training, directory))


def _plan(ctx: JobContext, spec: GanTrainInput, version: ModelVersion | None) -> team.Plan:
    """What all processes of the training must know: settings, images, the model to start from."""
    file = ctx.workdir / "images.u8"
    model: tuple[Path, str] | None = None if version is None else (ctx.models.directory(version), version.ref)
    return team.Plan(spec=spec, images=_images(ctx, spec, file, version), file=file, model=model)


def _training(ctx: JobContext, plan: team.Plan, version: ModelVersion | None, together: team.Team) -> Training:
    """Everything that comes before the first step."""
    spec, images = plan.spec, plan.images
    trainer = build_trainer(
        spec,
        images,
        plan.model,
        device=ctx.device,
        replicas=together.replicas,
        log=ctx.log,
        pulse=lambda: _within_a_step(ctx),
    )
    classes = f" of {len(images.labels)} classes" if images.labels else ""
    beside = f", on {together.replicas.count} devices" if together.helpers else ""
    ctx.log(f"training a {spec.architecture} of {spec.resolution} pixels on {len(images)} images{classes}{beside}")

    def pulse() -> None:
        ctx.check()
        together.check()

    course = Course(
        trainer,
        Evaluation(images, seed=given(spec)["seed"], device=ctx.device, pulse=pulse),
        Snapshots(ctx.workdir / "snapshots"),
        _watch(spec),
        _times(spec),
        Report(ctx, trainer, METRIC),
        pulse=pulse,
        checkpoint=lambda: _checkpoint(training),
    )
    training = Training(ctx=ctx, spec=spec, version=version, images=images, course=course)
    return training


def _within_a_step(ctx: JobContext) -> None:
    """A step of wide networks takes minutes on a CPU. A shutdown has to wait for its end all the same: only the state
    of a complete step is one to go on from."""
    ctx.signals.alive()
    ctx.signals.raise_if_unwanted()


def _images(ctx: JobContext, spec: GanTrainInput, file: Path, version: ModelVersion | None) -> TrainingImages:
    def on_progress(done: int, total: int) -> None:
        ctx.progress(done, total, "reading images")
        ctx.check()

    with ctx.dataset(spec.dataset) as archive:
        return data.build(
            archive,
            file,
            resolution=given(spec)["resolution"],
            resize=spec.resize,
            conditional=given(spec)["conditional"],
            batch_size=spec.batch_size,
            order=() if version is None else version.parameters["labels"] or (),
            on_progress=on_progress,
        )


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


def _times(spec: GanTrainInput) -> Timetable:
    return Timetable(
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
