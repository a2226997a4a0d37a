"""The reconciler: puts right what crashes and outages leave behind. `python -m worker.reconciler`

Any number may run; a Postgres advisory lock makes one the leader, and another takes over when it dies. Everything it
does is safe to do twice: each statement carries its own guard.
"""

from __future__ import annotations

import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from calotype import datasets, events, idempotency, model_uploads, queue, retention, workers
from calotype import log as logs
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.doorbell import Doorbell
from calotype.errors import DependencyDown, SettingsError
from calotype.jobs import Job, State
from calotype.settings import Settings, load_settings
from calotype.webhooks import deliveries
from calotype.webhooks.sending import SEND_SECONDS
from worker import orphans
from worker.deliverer import Deliverer
from worker.liveness import show_life

log = logging.getLogger("worker.reconciler")

#: The advisory lock of the leader.
LEADER_LOCK = 0x63616C6F2D726563  # "calo-rec"
#: Rows moved in one transaction.
BATCH = 100
#: Events dropped in one transaction.
EVENTS = 1000
#: A worker that was not seen for this many leases is taken for dead.
DEAD_AFTER_LEASES = 3
#: How long the rows of retired workers are kept, seconds.
KEEP_RETIRED_SECONDS = 7 * 86_400.0
#: Longest pause between rounds while a dependency is away, seconds.
LONGEST_PAUSE_SECONDS = 15.0
#: How long a client may take between asking for an upload and completing it, or registering it as a model.
UPLOAD_SECONDS = 86_400.0
#: Longest pause between two looks for orphaned objects, seconds.
LONGEST_COLLECT_PAUSE_SECONDS = 900.0
#: Rounds, at most a minute, between two looks for artifacts and jobs whose time is over.
ROUNDS_PER_RETIREMENT = 12
LONGEST_RETIRE_PAUSE_SECONDS = 60.0


class Leadership:
    """The advisory lock, and the session that holds it. It does not work through PgBouncer in transaction mode."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._session: Connection | None = None
        self._leading = False

    def held(self) -> bool:
        """Whether this process leads now; becomes the leader when nobody is. Raises DependencyDown."""
        try:
            if self._session is None:
                self._session = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            if self._leading:
                # The lock lives exactly as long as the session: that it answers is the proof.
                self._session.execute(sa.select(1))
            else:
                self._leading = bool(self._session.scalar(sa.select(sa.func.pg_try_advisory_lock(LEADER_LOCK))))
                if self._leading:
                    log.info("leading")
        except sa.exc.DBAPIError as exc:
            self.give_up()
            raise DependencyDown("Postgres cannot be reached.") from exc
        return self._leading

    def give_up(self) -> None:
        """Let another lead."""
        session, self._session, self._leading = self._session, None, False
        if session is not None:
            # Not back into the pool, where the lock would live on.
            session.invalidate()
            session.close()


class Reconciler:
    """One process's share of the work."""

    def __init__(
        self, *, engine: Engine, settings: Settings, store: ObjectStore, doorbell: Doorbell, leadership: Leadership
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._store = store
        self._doorbell = doorbell
        self._leadership = leadership
        #: Monotonic time of the last answer from Postgres; None before the first.
        self._last_answer: float | None = None
        self._reap_from = 0.0
        self.leading = False

    def round(self) -> None:
        """Everything but the collection of objects, once. Raises DependencyDown."""
        try:
            self.leading = self._leadership.held()
        except DependencyDown:
            self.leading = False
            self._last_answer = None
            raise
        self._note_answer()
        if not self.leading:
            return
        if time.monotonic() >= self._reap_from:
            self._move("reaped", queue.reap)
            self._retire_unseen()
        self._move("expired", queue.expire)
        self._tidy()
        self._forget()
        self._ring_forgotten()

    def collect(self) -> None:
        """Remove orphaned objects and old events. Slow in a large store: not part of a round. Raises DependencyDown."""
        if self.leading:
            self._thin()
            orphans.collect(self._engine, self._store, self._settings.orphan_seconds)
            datasets.expire_uploads(self._engine, self._store, UPLOAD_SECONDS)
            model_uploads.collect_uploads(self._engine, self._store, UPLOAD_SECONDS)
            datasets.collect_objects(self._engine, self._store, self._settings.orphan_seconds)

    def retire(self) -> None:
        """Remove artifacts and jobs whose time is over. Slow when there are many. Raises DependencyDown."""
        if self.leading:
            own = self._settings
            retention.sweep(
                self._engine, self._store, retain_seconds=own.retain_seconds, keep_seconds=own.keep_jobs_seconds
            )

    def _note_answer(self) -> None:
        """After an outage of Postgres, or on starting into one, workers get one more lease to renew theirs."""
        now, lease = time.monotonic(), self._settings.lease_seconds
        # Rounds that are further apart than a lease are no outage: patience without end would never reap.
        silence = max(lease, 2 * self._settings.reconcile_seconds)
        if self._last_answer is None or now - self._last_answer > silence:
            self._reap_from = now + lease
        self._last_answer = now

    def _move(self, word: str, move: Callable[[Connection, int], list[Job]]) -> None:
        """Batch by batch, so that no transaction grows long; jobs that may run again are rung for at once."""
        while True:
            with transaction(self._engine) as conn:
                moved = move(conn, BATCH)
            for job in moved:
                log.warning(word, extra={"job": job.id, "queue": job.queue, "epoch": job.epoch, "state": job.state})
                self._doorbell.announce(job.id)
            for name in {job.queue for job in moved if job.state is State.QUEUED}:
                self._doorbell.ring(name)
            if len(moved) < BATCH:
                return

    def _retire_unseen(self) -> None:
        with transaction(self._engine) as conn:
            retired = workers.retire_unseen(conn, DEAD_AFTER_LEASES * self._settings.lease_seconds)
        for worker_id in retired:
            log.warning("worker taken for dead", extra={"worker": worker_id})

    def _thin(self) -> None:
        dropped = EVENTS
        while dropped == EVENTS:
            with transaction(self._engine) as conn:
                dropped = events.thin(conn, self._settings.progress_seconds, EVENTS)

    def _tidy(self) -> None:
        with transaction(self._engine) as conn:
            queue.tidy(conn, BATCH)

    def _forget(self) -> None:
        with transaction(self._engine) as conn:
            workers.forget(conn, KEEP_RETIRED_SECONDS)
            idempotency.forget(conn, self._settings.idempotency_seconds)
            deliveries.forget(conn, self._settings.keep_deliveries_seconds)

    def _ring_forgotten(self) -> None:
        with transaction(self._engine) as conn:
            forgotten = forgotten_queues(conn)
        for name in forgotten:
            self._doorbell.ring(name)


# One look at each tenant's first jobs, however many wait.
_FORGOTTEN = sa.text("""
SELECT served.queue FROM (
    SELECT DISTINCT unnest(queues) AS queue FROM workers WHERE retired_at IS NULL AND state = 'idle' AND NOT draining
) AS served
WHERE NOT EXISTS (SELECT FROM queue_pauses p WHERE p.queue = served.queue)
    AND EXISTS (SELECT FROM tenant_queues tq CROSS JOIN LATERAL (
        SELECT FROM jobs j WHERE j.queue = tq.queue AND j.tenant_id = tq.tenant_id AND j.state = 'queued'
            AND j.leader_id IS NULL AND j.available_at <= now() LIMIT 1) AS one
        WHERE tq.queue = served.queue)
""")


def forgotten_queues(conn: Connection) -> Sequence[str]:
    """Queues with a runnable job beside an idle worker: their doorbell was lost, or a backoff has ended.

    Where all workers are busy or draining nobody needs a bell, and none must pile up in the broker; nor does a paused
    queue.
    """
    return conn.scalars(_FORGOTTEN).all()


def run(settings: Settings, stopping: threading.Event) -> None:
    """Reconcile until `stopping` is set, through any outage."""
    # Rounds, the collector and retention, beside the one connection that holds the leader's lock.
    engine = connect_engine(settings, application_name="reconciler", pool_size=3)
    leader_engine = connect_engine(settings, application_name="reconciler leader", pool_size=1)
    doorbell = Doorbell(settings)
    leadership = Leadership(leader_engine)
    reconciler = Reconciler(
        engine=engine, settings=settings, store=ObjectStore(settings), doorbell=doorbell, leadership=leadership
    )
    pause = min(LONGEST_COLLECT_PAUSE_SECONDS, max(settings.reconcile_seconds, settings.orphan_seconds / 4))
    collector = threading.Thread(target=_repeat, args=("collect", reconciler.collect, pause, stopping), daemon=True)
    collector.start()
    pause = min(LONGEST_RETIRE_PAUSE_SECONDS, ROUNDS_PER_RETIREMENT * settings.reconcile_seconds)
    retirer = threading.Thread(target=_repeat, args=("retire", reconciler.retire, pause, stopping), daemon=True)
    retirer.start()
    deliverer = threading.Thread(
        target=Deliverer.of(settings).run, args=(lambda: reconciler.leading, stopping), daemon=True
    )
    deliverer.start()

    def once() -> None:
        helpers = (("collector", collector), ("retention", retirer), ("deliverer of webhooks", deliverer))
        for name, helper in helpers:
            if not helper.is_alive() and not stopping.is_set():
                raise RuntimeError(f"the {name} ended; the traceback above says why")
        # Also in an outage: restarting the reconciler would not end one.
        show_life(settings)
        reconciler.round()

    _repeat("round", once, settings.reconcile_seconds, stopping)
    leadership.give_up()
    # What is being sent is heard to its end, or it would be sent again.
    deliverer.join(2 * SEND_SECONDS)
    doorbell.close()
    for pool in (engine, leader_engine):
        pool.dispose()


def _repeat(what: str, action: Callable[[], None], seconds: float, stopping: threading.Event) -> None:
    """Run `action` at a jittered interval, less and less often while a dependency is away."""
    failures = 0
    while not stopping.is_set():
        try:
            action()
            failures = 0
        except DependencyDown as exc:
            failures += 1
            log.warning("trying again later", extra={"what": what, "reason": exc.detail, "failures": failures})
        pause = min(max(seconds, LONGEST_PAUSE_SECONDS), seconds * 2.0**failures) if failures else seconds
        stopping.wait(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load


def main() -> int:
    """Run a reconciler until it is asked to stop; returns the exit status."""
    try:
        settings = load_settings()
        settings.require("database_url", "broker_url", "s3_endpoint", "s3_access_key", "s3_secret_key")
    except SettingsError as exc:
        sys.stderr.write(f"{exc.detail}\n")
        return 2
    logs.configure(settings)
    stopping = threading.Event()
    runner = threading.Thread(target=run, args=(settings, stopping), name="reconciler")
    # The main thread only hears signals: a handler must not set an event that its own thread waits for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    log.info("reconciling", extra={"seconds": settings.reconcile_seconds})
    runner.start()
    runner.join()
    log.info("stopped" if stopping.is_set() else "the reconciler failed; the traceback above says why")
    return 0 if stopping.is_set() else 1


if __name__ == "__main__":
    sys.exit(main())
