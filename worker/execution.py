"""Claimed jobs, from their handler to their outcome; `worker.settling` writes the outcome down."""

from __future__ import annotations

import importlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from calotype import log as logs
from calotype import specs
from calotype.artifacts import ObjectStore
from calotype.doorbell import Doorbell
from calotype.errors import JobFailed
from calotype.jobs import Job
from calotype.settings import Settings
from worker.batch import Batch, BatchHandler, Finishing, NobodyLeft, one_by_one
from worker.cache import ModelCache
from worker.context import JobContext
from worker.exit import ExitCode, leave
from worker.failures import classify
from worker.families import BATCHED, HANDLERS
from worker.lease import LeaseKeeper
from worker.members import Member
from worker.settling import Settler
from worker.signals import Interrupted, ShuttingDown, Signals

log = logging.getLogger(__name__)

#: How long a process that must end, because its device is lost, waits for what its jobs have to say.
LAST_WORD_SECONDS = 30.0


class Executor:
    """Runs one batch at a time; a job that cannot share is a batch of one."""

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
        self._settings = settings
        self._store = store
        self._models = models
        self._doorbell = doorbell
        self._shutdown = shutdown
        self._leases = LeaseKeeper(lease_engine, settings, doorbell.announce)
        self._settler = Settler(
            engine=engine, settings=settings, store=store, doorbell=doorbell, on_settled=self._on_settled
        )
        self._running: tuple[Member, ...] = ()
        self._lock = threading.Lock()
        self._out_of_memory = False
        #: Of the batch before, and of the one in hand.
        self._earlier: list[Future[None]] = []
        self._settling: list[Future[None]] = []
        #: Called when jobs begin or have ended.
        self.on_change: Callable[[], None] = lambda: None
        #: Called when a job has its next state: its tenant may run another.
        self.on_settled: Callable[[], object] = lambda: None

    @property
    def running(self) -> tuple[Member, ...]:
        """What is in hand now, until its row says otherwise; read by the supervisor and by the worker's presence."""
        return self._running

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run jobs that were claimed together and bring each to its next state."""
        self.compute(jobs)
        self.wait()

    def compute(self, jobs: Sequence[Job]) -> None:
        """Like `execute`, but return as soon as the device is free: these jobs may still be on their way.

        One batch at most is: this waits for those of the call before.
        """
        members = [self._member(job) for job in jobs]
        with self._lock:
            self._running += tuple(members)
        self.on_change()
        self._leases.keep(members)
        for job in jobs:
            self._doorbell.announce(job.id)
        try:
            with logs.context(**_names(jobs)):
                self._run(Batch(members, self._hand_over, self._settings), members)
        finally:
            self._models.release()
        wait(self._earlier)
        self._earlier, self._settling = self._settling, []

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until every job is settled whose outcome is known; False if that takes longer than `seconds`."""
        done = not wait([*self._earlier, *self._settling], seconds).not_done
        self._leases.rest()
        return done

    def _member(self, job: Job) -> Member:
        deadline = None if job.timeout_seconds is None else time.monotonic() + job.timeout_seconds
        return Member(job=job, signals=Signals(shutdown=self._shutdown, deadline=deadline))

    def _hand_over(self, member: Member, outcome: Finishing | BaseException) -> None:
        member.open = False
        if isinstance(outcome, BaseException):
            # Its traceback would keep the tensors of the failed call alive while the next one runs.
            traceback.clear_frames(outcome.__traceback__)
        if isinstance(outcome, Exception) and classify(outcome, self._settings).code == "out_of_memory":
            self._out_of_memory = True
        self._settling.append(self._settler.settle(member, outcome))

    def _on_settled(self, member: Member) -> None:
        self._leases.let_go(member)
        with self._lock:
            self._running = tuple(one for one in self._running if one is not member)
        self.on_change()
        self.on_settled()

    def _run(self, batch: Batch, members: Sequence[Member]) -> None:
        for member in members:
            self._prepare(member)
        if len(batch.contexts) > 1 and members[0].job.queue in BATCHED:
            self._attempt(batch, batch)
        for ctx in batch.contexts:
            # Its turn may come when it has left already: the others look after those who wait.
            if batch.is_open(ctx):
                self._attempt(batch.alone(ctx), batch)
        if self._out_of_memory:
            # What other jobs left loaded may be what was in the way.
            self._models.clear()
            self._out_of_memory = False

    def _prepare(self, member: Member) -> None:
        """Give a member its context. A spec that cannot be read is its own failure."""
        job = member.job
        log.info("claimed", extra={"job": job.id, "attempt": job.attempt, "model": job.model})
        try:
            member.context = JobContext(
                job=job,
                spec=specs.parse(job.spec),
                settings=self._settings,
                store=self._store,
                models=self._models,
                workdir=Path(member.make_folder()),
                engine=self._engine,
                signals=member.signals,
                announce=self._doorbell.announce,
            )
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this job's
            self._hand_over(member, exc)

    def _attempt(self, batch: Batch, whole: Batch) -> None:
        """Run the handler for a batch, or for one of its jobs alone. May leave several open, but not one."""
        first = batch.contexts[0]
        # A handler of one job wants to hear its own reason to stop: it may have a checkpoint to write.
        self._models.pulse = batch.check if first.job.queue in BATCHED else first.check
        try:
            batch.check()
            load_handler(first.job.queue)(batch)
        except NobodyLeft:
            return
        except Interrupted:
            # One job's reason to stop went past the handler; what is left runs alone.
            log.warning("the batch was interrupted", exc_info=True)
        except Exception as exc:
            failure = classify(exc, self._settings)
            if failure.fatal:
                self._give_up_device(batch, whole, exc)
            if len(batch.contexts) > 1 and failure.code != "dependency_down":
                log.warning("the batch failed: its jobs run one by one", exc_info=exc)
                return
            for ctx in batch.contexts:
                batch.fail(ctx, exc)
        if len(batch.contexts) == 1:
            batch.fail(batch.contexts[0], _no_outcome())

    def _give_up_device(self, batch: Batch, whole: Batch, exc: Exception) -> None:
        """End the process: only a new one can use the device. Jobs that only waited are given back unharmed."""
        for ctx in batch.contexts:
            batch.fail(ctx, exc)
        for ctx in whole.contexts:
            whole.fail(ctx, ShuttingDown())
        self.wait(LAST_WORD_SECONDS)
        leave(ExitCode.DEVICE, classify(exc, self._settings).detail)


def load_handler(queue_name: str) -> BatchHandler:
    """The handler of a queue, imported on first use. Raises JobFailed when its code or a package of it is missing."""
    module, _, function = HANDLERS[queue_name].partition(":")
    try:
        handler: Any = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as exc:
        raise JobFailed(
            "internal_error",
            "The worker lacks the code for this queue",
            f"{queue_name} needs {HANDLERS[queue_name]}, which this worker cannot import ({exc}). "
            "Install it with `pip install calotype[worker]`.",
            retryable=True,
        ) from exc
    return handler if queue_name in BATCHED else one_by_one(handler)


def _names(jobs: Sequence[Job]) -> dict[str, Any]:
    """What is logged beside everything that happens for these jobs."""
    if len(jobs) == 1:
        return {"job": jobs[0].id, "queue": jobs[0].queue, "epoch": jobs[0].epoch}
    return {"queue": jobs[0].queue, "jobs": len(jobs)}


def _no_outcome() -> JobFailed:
    return JobFailed(
        "internal_error",
        "The handler gave no result",
        "The handler ended without a result or an error.",
        retryable=False,
    )
