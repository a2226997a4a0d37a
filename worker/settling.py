"""From an outcome to the row's next state: exactly one of finish, fail, release, acknowledge or drop for each job.

It happens in threads of its own, so that the device can go on with the next batch while files are uploaded, and so that
a job that is done or canceled is not held back by the others of its batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from sqlalchemy import Connection, Engine

from calotype import log as logs
from calotype import queue
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.errors import CancelRequested as CancelRefusal
from calotype.errors import LeaseLost as StaleEpoch
from calotype.jobs import Job, State
from calotype.settings import Settings
from worker.batch import Finishing
from worker.failures import classify, retry_in
from worker.members import Member
from worker.patience import patiently
from worker.publish import upload
from worker.said import tell
from worker.signals import CancelRequested, LeaseLost, ShuttingDown

log = logging.getLogger(__name__)

#: Jobs that are settled at once.
THREADS = 3
#: So much later a job that shared its call is settled: the device stands still until the next jobs are claimed, and
#: beside several ends at once that claim takes three times as long.
HEAD_START_SECONDS = 0.02
#: How long a finished job waits for Postgres. Not for ever, lest a result that Postgres will not take holds its worker.
FINISH_PATIENCE_SECONDS = 3600.0


class Settler:
    """Takes jobs whose outcome is known out of the worker's hands."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: Settings,
        store: ObjectStore,
        doorbell: Doorbell,
        on_settled: Callable[[Member], None],
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._store = store
        self._doorbell = doorbell
        self._on_settled = on_settled
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="settle")

    def settle(self, member: Member, outcome: Finishing | BaseException) -> Future[None]:
        """Begin; the future ends, without an error, when the job is in nobody's hands any more."""
        head_start = HEAD_START_SECONDS if member.job.batch_share < 1.0 else 0.0
        return self._pool.submit(self._settle, member, outcome, time.monotonic() + head_start)

    def _settle(self, member: Member, outcome: Finishing | BaseException, not_before: float) -> None:
        job = member.job
        time.sleep(max(0.0, not_before - time.monotonic()))
        member.signals.alive()
        try:
            with logs.context(job=job.id, queue=job.queue, epoch=job.epoch):
                self._bring_on(member, outcome)
        except Exception:
            # Not the end of the worker: the lease lapses, and the reconciler gives the job to another.
            log.exception("not settled", extra={"job": job.id})
        finally:
            member.settled = True
            member.remove_folder()
            self._on_settled(member)

    def _bring_on(self, member: Member, outcome: Finishing | BaseException) -> None:
        job = member.job
        try:
            if isinstance(outcome, BaseException):
                raise outcome
            self._publish(member, outcome)
        except (LeaseLost, StaleEpoch):
            log.warning("dropped: another worker has the job")
        except (CancelRequested, CancelRefusal):
            self._move("cancel", member, lambda conn: queue.acknowledge_cancel(conn, job.id, job.epoch))
        except ShuttingDown:
            self._move("release", member, lambda conn: queue.release(conn, job.id, job.epoch))
            log.info("released")
        except Exception as exc:  # noqa: BLE001 - whatever a handler raises is its job's failure, not the worker's
            self._fail(member, exc)

    def _publish(self, member: Member, finishing: Finishing) -> None:
        job = member.job
        outcome = upload(self._store, job, member.signals, finishing())
        finish = partial(queue.finish, job_id=job.id, epoch=job.epoch, outcome=outcome)
        if self._move("finish", member, finish, FINISH_PATIENCE_SECONDS):
            log.info("finished", extra={"seconds": round(time.monotonic() - member.began, 3)})

    def _fail(self, member: Member, exc: Exception) -> None:
        job, failure = member.job, classify(exc, self._settings)
        log.error(
            "failed",
            extra={"code": failure.code, "detail": failure.detail, "retryable": failure.retryable},
            exc_info=exc,
        )
        error = queue.job_error(failure)
        wait = retry_in(failure, job.attempt, self._settings)
        self._move("fail", member, lambda conn: queue.fail(conn, job.id, job.epoch, error, wait))

    def _move(
        self, what: str, member: Member, move: Callable[[Connection], Job], seconds: float = float("inf")
    ) -> bool:
        """Bring the row to its next state, however long Postgres is away; False if the epoch turned out to be stale."""
        job, signals = member.job, member.signals

        def attempt() -> Job:
            with signals.said.taken(wait=True) as lines, transaction(self._engine) as conn:
                tell(conn, job, lines)
                return move(conn)

        signals.settling = True
        try:
            moved = patiently(attempt, what=f"{what} job {job.id}", pulse=signals.alive, seconds=seconds)
        except StaleEpoch:
            # Either the lease lapsed, or a COMMIT whose answer was lost did go through.
            log.warning("not settled: the epoch is stale", extra={"wanted": what})
            return False
        self._announce(moved)
        return True

    def _announce(self, moved: Job) -> None:
        for job_id in (moved.id, *moved.answered):
            self._doorbell.announce(job_id)
        # It goes back to the queue, or an equal job that waited for its result may have taken its place there.
        if moved.state is State.QUEUED or (moved.state is not State.SUCCEEDED and moved.any_seed_key is not None):
            self._doorbell.ring(moved.queue)
