"""The drain loop: claim and run until no queue of the worker has anything runnable, then wait for a reason to look.

Reasons are a doorbell and the loop's own jittered clock. A doorbell says nothing but "look": which queue rang does not
matter, one that rings while the loop drains makes it look once more, and one that is lost costs a few seconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from sqlalchemy import Engine

from calotype import queue, workers
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.jobs import Job
from calotype.scheduling import Affinity
from calotype.settings import Settings
from worker.families import BATCHED

log = logging.getLogger(__name__)

#: How often it looks again when there was work that it could not get, and after how long.
MOST_CONTENDED, CONTENDED_SECONDS = 5, 0.05


class DrainLoop:
    """Runs in one thread: at most one batch at a time per process."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: Settings,
        worker_id: UUID,
        queues: Sequence[str],
        execute: Callable[[Sequence[Job]], None],
        shutdown: threading.Event,
        loaded: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._worker_id = worker_id
        self._queues = tuple(queues)
        self._execute = execute
        self._shutdown = shutdown
        #: Keys of the models in memory.
        self._loaded = loaded
        self._affinity = Affinity(longest_wait=settings.affinity_seconds, longest_streak=settings.affinity_streak)
        self._changed = threading.Condition()
        #: Rings heard, and rings that a drain begun afterwards has answered.
        self._heard = 0
        self._answered = 0
        self._draining = False
        self._ended = False
        #: Whether an operator wants no more jobs taken, as of the last look.
        self.resting = False
        #: Monotonic time of the last sign that the loop itself goes round.
        self.last_turn = time.monotonic()
        #: Monotonic time of the last time that Postgres answered what there is to do; None before the first.
        self.last_look: float | None = None

    @property
    def answers(self) -> bool:
        """Whether a ring would be answered at once: it is neither at work nor kept from work by an operator."""
        return not self._draining and not self.resting

    def ring(self) -> int:
        """Ask for a look at the queues. Returns a ticket for `wait_answered`."""
        with self._changed:
            self._heard += 1
            self._changed.notify_all()
            return self._heard

    def wait_allowed(self) -> None:
        """Wait until an operator lets the worker take jobs, or the loop has ended."""
        with self._changed:
            self._changed.wait_for(lambda: not self.resting or self._ended)

    def wait_answered(self, ticket: int) -> None:
        """Wait until a drain that began after the ring is over, or the loop has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered >= ticket or self._ended)

    def run(self) -> None:
        """Drain, wait, drain again, until shutdown. Never raises for an outage of Postgres."""
        try:
            while not self._shutdown.is_set():
                heard = self._heard
                self._draining = True
                self._drain()
                self._draining = False
                with self._changed:
                    self._answered = heard
                    self._changed.notify_all()
                    self._changed.wait_for(self._has_reason, timeout=self._idle_seconds())
        finally:
            with self._changed:
                self._ended = True
                self._draining = False
                self._changed.notify_all()

    def _drain(self) -> None:
        contended = 0
        try:
            while not self._shutdown.is_set():
                self.last_turn = time.monotonic()
                claimed = self._claim()
                if claimed.jobs:
                    contended = 0
                    self._execute(claimed.jobs)
                elif claimed.contended and contended < MOST_CONTENDED:
                    # Whoever was faster, or held a lock, may have left something.
                    contended += 1
                    self._shutdown.wait(CONTENDED_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
                else:
                    return
        except DependencyDown as exc:
            log.warning("cannot look for work", extra={"reason": exc.detail})

    def _claim(self) -> queue.Claimed:
        claimant = queue.Claimant(
            worker_id=self._worker_id,
            queues=self._queues,
            lease_seconds=self._settings.lease_seconds,
            pool=self._settings.pool,
            loaded=tuple(self._loaded()),
            may_pass=self._affinity.may_pass(time.monotonic()),
            most_units=1 if BATCHED.isdisjoint(self._queues) else self._settings.max_batch,
        )
        with transaction(self._engine) as conn:
            claimed = queue.claim_batch(conn, claimant)
            # It may be the reason why there were none. Whoever heard a bell must know at once, and not with the next
            # heartbeat: the bell was then heard by the wrong worker.
            resting = not claimed.jobs and workers.is_draining(conn, self._worker_id)
        self.resting = resting
        self.last_look = time.monotonic()
        self._affinity.note(self.last_look, passed=claimed.passed)
        return claimed

    def _has_reason(self) -> bool:
        return self._heard > self._answered or self._shutdown.is_set()

    def _idle_seconds(self) -> float:
        """Jittered, so that the idle workers of a cluster do not ask Postgres all at once."""
        return self._settings.idle_poll_seconds * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
