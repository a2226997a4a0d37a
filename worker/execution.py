"""One claimed job, from its handler to its final state: exactly one of finish, fail, release, acknowledge or drop."""

from __future__ import annotations

import importlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine

from calotype import log as logs
from calotype import queue, specs
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.errors import CancelRequested as CancelRefusal
from calotype.errors import JobFailed
from calotype.errors import LeaseLost as StaleEpoch
from calotype.jobs import Job
from calotype.settings import Settings
from worker.cache import ModelCache
from worker.context import Handler, JobContext
from worker.exit import ExitCode, leave
from worker.failures import classify, retry_in
from worker.families import HANDLERS
from worker.lease import LeaseKeeper
from worker.patience import patiently
from worker.publish import upload
from worker.signals import CancelRequested, LeaseLost, ShuttingDown, Signals

log = logging.getLogger(__name__)

#: How long a finished job waits for Postgres. Not for ever, lest a result that Postgres will not take holds its worker.
FINISH_PATIENCE_SECONDS = 3600.0


@dataclass(frozen=True)
class Running:
    """The job in hand, for those who watch over it."""

    job: Job
    signals: Signals


class Executor:
    """Runs one job at a time."""

    def __init__(
        self,
        *,
        engine: Engine,
        lease_engine: Engine,
        settings: Settings,
        store: ObjectStore,
        models: ModelCache,
        doorbell: Doorbell,
        shutdown: threading.Event,
    ) -> None:
        self._engine = engine
        self._lease_engine = lease_engine
        self._settings = settings
        self._store = store
        self._models = models
        self._doorbell = doorbell
        self._shutdown = shutdown
        #: What runs now; read by the supervisor and by the worker's presence.
        self.running: Running | None = None
        #: Called when a job begins or has ended.
        self.on_change: Callable[[], None] = lambda: None

    def execute(self, job: Job) -> None:
        """Run a job that was just claimed and bring it to its next state."""
        deadline = None if job.timeout_seconds is None else time.monotonic() + job.timeout_seconds
        signals = Signals(shutdown=self._shutdown, deadline=deadline)
        self.running = Running(job, signals)
        self.on_change()
        try:
            with (
                logs.context(job=job.id, queue=job.queue, epoch=job.epoch),
                LeaseKeeper(self._lease_engine, self._settings, job, signals),
            ):
                log.info("claimed", extra={"attempt": job.attempt, "model": job.model})
                self._run_and_settle(job, signals)
        finally:
            self.running = None
            self._models.release()
            self.on_change()

    def _run_and_settle(self, job: Job, signals: Signals) -> None:
        started = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix=f"calotype-{job.id}-", ignore_cleanup_errors=True) as folder:
                published = self._run(job, signals, Path(folder))
            if published:
                log.info("finished", extra={"seconds": round(time.monotonic() - started, 3)})
        except (LeaseLost, StaleEpoch):
            log.warning("dropped: another worker has the job")
        except (CancelRequested, CancelRefusal):
            self._settle("cancel", job, signals, lambda conn: queue.acknowledge_cancel(conn, job.id, job.epoch))
        except ShuttingDown:
            self._settle("release", job, signals, lambda conn: queue.release(conn, job.id, job.epoch))
            log.info("released")
            self._doorbell.ring(job.queue)
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises is its job's failure, not the worker's
            self._fail(job, signals, exc)

    def _run(self, job: Job, signals: Signals, workdir: Path) -> bool:
        """Run the handler and publish what it made; returns whether the publication counts."""
        context = self._context(job, signals, workdir)
        context.check()
        result = load_handler(job.queue)(context)
        # Publishing is not the job's own time.
        signals.deadline = None
        outcome = upload(self._store, job, signals, result)
        finish = partial(queue.finish, job_id=job.id, epoch=job.epoch, outcome=outcome)
        return self._settle("finish", job, signals, finish, FINISH_PATIENCE_SECONDS)

    def _context(self, job: Job, signals: Signals, workdir: Path) -> JobContext:
        context = JobContext(
            job=job,
            spec=specs.parse(job.spec),
            settings=self._settings,
            store=self._store,
            models=self._models,
            workdir=workdir,
            engine=self._engine,
            signals=signals,
        )
        self._models.pulse = context.check
        return context

    def _fail(self, job: Job, signals: Signals, exc: Exception) -> None:
        failure = classify(exc, self._settings)
        log.error(
            "failed",
            extra={"code": failure.code, "detail": failure.detail, "retryable": failure.retryable},
            exc_info=exc,
        )
        error = queue.job_error(failure)
        wait = retry_in(failure, job.attempt, self._settings)
        self._settle("fail", job, signals, lambda conn: queue.fail(conn, job.id, job.epoch, error, wait))
        if failure.fatal:
            leave(ExitCode.DEVICE, failure.detail)
        if failure.code == "out_of_memory":
            # What other jobs left loaded may be what was in the way.
            self._models.clear()

    def _settle(
        self,
        what: str,
        job: Job,
        signals: Signals,
        move: Callable[[Connection], Job],
        seconds: float = float("inf"),
    ) -> bool:
        """Bring the row to its next state, however long Postgres is away; False if the epoch turned out to be stale."""

        def attempt() -> None:
            with transaction(self._engine) as conn:
                move(conn)

        signals.settling = True
        try:
            patiently(attempt, what=f"{what} job {job.id}", pulse=signals.alive, seconds=seconds)
        except StaleEpoch:
            # Either the lease lapsed, or a COMMIT whose answer was lost did go through.
            log.warning("not settled: the epoch is stale", extra={"wanted": what})
            return False
        return True


def load_handler(queue_name: str) -> Handler:
    """The handler of a queue, imported on first use. Raises JobFailed when its code or a package of it is missing."""
    module, _, function = HANDLERS[queue_name].partition(":")
    try:
        handler: Handler = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise JobFailed(
            "internal_error",
            "The worker lacks the code for this queue",
            f"{queue_name} needs {HANDLERS[queue_name]}, which this worker cannot import ({exc}). "
            "Install it with `pip install calotype[worker]`.",
            retryable=True,
        ) from exc
    return handler
