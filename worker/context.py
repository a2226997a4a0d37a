"""What a handler sees of the rest of the system, and what it hands back.

A handler is a function of one argument, `run(ctx: JobContext) -> HandlerResult`. It loads through `ctx.models`, calls
`ctx.check()` at every step, reports through `ctx.progress()`, writes files under `ctx.workdir`, and returns what is to
be published. It never touches the job's row: leases, epochs, uploads and final states belong to the executor. Several
jobs may share one call of their model: see `worker.batch`.

To fail, raise `calotype.errors.JobFailed` with a stable code. To be interrupted, let `Interrupted` pass.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from sqlalchemy import Engine

from calotype import datasets, queue, registry
from calotype import log as logs
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.errors import JobFailed, NotFound
from calotype.jobs import Job, Progress
from calotype.registry import ModelVersion
from calotype.settings import Settings
from calotype.specs import JobRequest
from worker import checkpoints, tracking
from worker.cache import PATIENCE_SECONDS, ModelCache
from worker.device import torch_device
from worker.patience import patiently
from worker.said import log_line, metrics_line
from worker.signals import CancelRequested, Interrupted, LeaseLost, ShuttingDown, Signals

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

T = TypeVar("T")

__all__ = [
    "CancelRequested",
    "Handler",
    "HandlerResult",
    "Interrupted",
    "JobContext",
    "LeaseLost",
    "NewModel",
    "Output",
    "ShuttingDown",
]


@dataclass(frozen=True)
class Output:
    """A file that the job publishes as an artifact."""

    #: Unique within the job, e.g. "image-0.png"; the last part of the artifact's object key.
    name: str
    path: Path
    content_type: str
    #: Pixels; None for anything that is not an image.
    width: int | None = None
    height: int | None = None
    #: The seed that makes this very image again.
    seed: int | None = None


@dataclass(frozen=True)
class NewModel:
    """A model version that the job made; registered in the transaction that finishes the job."""

    name: str
    family: str
    #: "sd3", "lora", …: what the family's loader dispatches on.
    architecture: str
    #: "name@version" of the model that an adapter belongs to; None for a complete model.
    base: str | None
    licence: str | None
    #: Defaults and limits that specs are checked against, e.g. `default_width`.
    parameters: Mapping[str, Any]
    #: Where it came from, for people: method, dataset, steps.
    source: Mapping[str, Any]
    #: All files below become the version's files.
    directory: Path


@dataclass(frozen=True)
class HandlerResult:
    """What a handler returns: files to publish, a JSON-able result, perhaps a model."""

    outputs: list[Output]
    result: dict[str, Any]
    model: NewModel | None = None


def _nothing(*_: object) -> None:
    """Nobody watches, nobody waits."""


@dataclass(kw_only=True)
class JobContext:
    """One job's view of the worker."""

    job: Job
    #: The complete, validated request: sizes, steps and seed are filled in, model references are pinned.
    spec: JobRequest
    settings: Settings
    store: ObjectStore
    models: ModelCache
    #: An empty folder of the job's own, removed when the handler has returned.
    workdir: Path
    engine: Engine
    signals: Signals
    #: Tells whoever watches that the job has changed; called after a commit.
    announce: Callable[[UUID], None] = _nothing
    #: Called at every `check()`: looks after jobs that wait for this one to be through.
    beside: Callable[[], None] = _nothing
    #: Where measurements and images go beside the job's events, while a training is tracked.
    _tracker: tracking.Tracker = field(default_factory=tracking.NoTracker, init=False)
    _stage: str = field(default="", init=False)
    _stage_started: float = field(default=0.0, init=False)
    _stage_first_step: int = field(default=0, init=False)

    @property
    def device(self) -> torch.device:
        """Where to compute, by `CALOTYPE_DEVICE`."""
        return torch_device(self.settings.device)

    def check(self) -> None:
        """Raise if the job must stop. Cheap (no I/O): call it at every step.

        Raises CancelRequested, LeaseLost or ShuttingDown (all Interrupted), or JobFailed `timeout`.
        """
        self.signals.alive()
        self.beside()
        self.signals.raise_if_interrupted()
        if self.signals.timed_out():
            raise JobFailed(
                "timeout",
                "The job ran out of time",
                f"It was still running after its timeout_seconds ({self.job.timeout_seconds}). "
                "Ask for less work or a longer timeout.",
                retryable=False,
            )

    def progress(self, step: int, total: int, stage: str) -> None:
        """Say that `step` of `total` steps of this stage are done.

        Cheap, call it at every step: the lease thread writes the newest about once a second.
        """
        self.signals.alive()
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_started, self._stage_first_step = stage, now, step
        done = step - self._stage_first_step
        eta = (total - step) * (now - self._stage_started) / done if done > 0 else None
        fraction = min(1.0, step / total) if total > 0 else 0.0
        self.signals.unwritten = Progress(fraction=fraction, step=step, total=total, stage=stage, eta_seconds=eta)

    def log(self, message: str) -> None:
        """A line in the worker's log and among the job's events, where its owner reads it while the job runs."""
        self.signals.alive()
        with logs.context(job=self.job.id, queue=self.job.queue, epoch=self.job.epoch):
            log.info(message)
        self.signals.said.add(*log_line(message))

    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Measurements as they are now, e.g. `{"step": 120, "loss": 0.31}`, among the job's events.

        Each is a row in Postgres: every few seconds is often enough. None, or what is not finite: unknown.
        """
        self.signals.alive()
        kind, known = metrics_line(values)
        self.signals.said.add(kind, known)
        self._tracker.metrics(known)

    @contextmanager
    def tracked(self, step: int) -> Iterator[None]:
        """Track what is measured inside, where the operator wants that (`CALOTYPE_TRACKER`).

        `step` is that of the checkpoint which the training goes on from; 0: it begins.
        """
        earlier = self._checkpoint_folder / tracking.EVENTS_FILE
        with tracking.tracked(self.settings, self.job, self.spec, step=step, earlier=earlier) as self._tracker:
            try:
                yield
                self._tracker.store(self.workdir / tracking.EVENTS_FILE)
            finally:
                self._tracker = tracking.NoTracker()

    def tracked_images(self, name: str, paths: Sequence[Path], step: int) -> None:
        """Images that a training made to show how far it is, for whoever tracks it."""
        self._tracker.images(name, paths, step)

    def tracked_outputs(self) -> list[Output]:
        """What is to be published of a tracked training that has ended."""
        path = self.workdir / tracking.EVENTS_FILE
        return [Output(path.name, path, "application/octet-stream")] if path.exists() else []

    def save_checkpoint(self, path: Path, step: int) -> None:
        """Store a file or a folder as the job's checkpoint at `step`; the previous one is removed afterwards.

        When Postgres or the store cannot be reached the previous checkpoint stays in force and the job goes on: a
        missed checkpoint costs time after a crash, giving up costs it now. Raises LeaseLost when the job has moved
        elsewhere.
        """
        self.signals.alive()
        if path.is_dir():
            self._tracker.store(path / tracking.EVENTS_FILE)
        self.job = checkpoints.save(self.engine, self.store, self.job, path, step, self.signals.alive)
        self.announce(self.job.id)
        self.signals.alive()

    def load_checkpoint(self) -> tuple[Path, int] | None:
        """The newest checkpoint, fetched into `workdir`, and its step; None: begin at the beginning."""
        folder = self._checkpoint_folder
        return self._patiently("checkpoint", lambda: checkpoints.load(self.store, self.job, folder, self.check))

    @property
    def _checkpoint_folder(self) -> Path:
        return self.workdir / "checkpoint"

    def resolve(self, ref: str) -> ModelVersion:
        """The model version "name@version" that the job's tenant may use. Raises JobFailed `model_unavailable`."""

        def find() -> ModelVersion:
            with transaction(self.engine) as conn:
                return registry.find_version(conn, self.job.tenant_id, ref)

        try:
            return self._patiently(f"model {ref}", find)
        except NotFound as exc:
            raise JobFailed(
                "model_unavailable", "The model is gone", f"No model {ref} is registered any more.", retryable=False
            ) from exc

    def dataset(self, ref: str) -> datasets.DatasetArchive:
        """The dataset "ds_…", on this node's disk. Raises JobFailed `dataset_unavailable`."""

        def find() -> datasets.Dataset:
            with transaction(self.engine) as conn:
                return datasets.find_dataset(conn, self.job.tenant_id, ref)

        try:
            return datasets.DatasetArchive(self.models.dataset_file(self._patiently(f"dataset {ref}", find)))
        except NotFound as exc:
            raise JobFailed(
                "dataset_unavailable", "The dataset is gone", f"No dataset {ref} exists any more.", retryable=False
            ) from exc

    def read_artifact(self, job_id: UUID, name: str) -> bytes:
        """The bytes of an artifact of another job of the same tenant. Raises JobFailed `bad_input`."""

        def read() -> bytes:
            with transaction(self.engine) as conn:
                queue.get(conn, self.job.tenant_id, job_id)
                artifacts = queue.artifacts_of(conn, [job_id]).get(job_id, [])
            key = next((artifact.object_key for artifact in artifacts if artifact.name == name), None)
            if key is None:
                raise NotFound(f"Job {job_id} has no artifact {name}.")
            return self.store.get_bytes(key)

        try:
            return self._patiently(f"artifact {job_id}/{name}", read)
        except NotFound as exc:
            raise JobFailed(
                "bad_input", "The image referred to is gone", f"There is no artifact {job_id}/{name}.", retryable=False
            ) from exc

    def _patiently(self, what: str, action: Callable[[], T]) -> T:
        """The result of `action`, waiting out an outage; gives up early when the job is to stop."""
        self.check()
        return patiently(action, what=what, pulse=self.check, seconds=PATIENCE_SECONDS)


Handler = Callable[[JobContext], HandlerResult]
