"""Holds the lease of a running job from a thread and a Postgres connection of its own.

Every `heartbeat_seconds` it renews the lease; every `cancel_poll_seconds` it asks whether to cancel, and writes the
newest progress. While Postgres cannot be reached it keeps trying and lets the job go on: every write is fenced, so the
worst that can happen is that the work was done twice. It never touches the handler except through `Signals`.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Self

from sqlalchemy import Engine

from calotype import queue
from calotype.database import transaction
from calotype.errors import DependencyDown, LeaseLost
from calotype.jobs import Job, State
from calotype.settings import Settings
from worker.signals import Signals

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Keeps one job's lease while its block runs."""

    def __init__(self, engine: Engine, settings: Settings, job: Job, signals: Signals) -> None:
        self._engine = engine
        self._settings = settings
        self._job = job
        self._signals = signals
        self._done = threading.Event()
        #: The claim itself was the first heartbeat.
        self._next_heartbeat = time.monotonic() + settings.heartbeat_seconds
        self._reachable = True
        self._thread = threading.Thread(target=self._keep, name=f"lease-{job.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        # It may be inside a connection attempt; the job must not wait for that, and a fenced write does no harm.
        self._thread.join(timeout=self._settings.cancel_poll_seconds)

    def _keep(self) -> None:
        while not self._done.wait(min(self._settings.cancel_poll_seconds, self._settings.heartbeat_seconds)):
            try:
                state = self._look()
            except LeaseLost:
                if not self._signals.settling:
                    log.warning("lease lost", extra={"job": self._job.id, "epoch": self._job.epoch})
                    self._signals.lease_lost.set()
                return
            except DependencyDown as exc:
                if self._reachable:
                    log.warning(
                        "lease cannot be renewed, working on", extra={"job": self._job.id, "reason": exc.detail}
                    )
                self._reachable = False
                continue
            except Exception:
                # Whatever it was: without this thread the lease lapses, and the job is run again and again.
                log.exception("lease not renewed, trying again", extra={"job": self._job.id})
                continue
            self._reachable = True
            if state is State.CANCELING and not self._signals.cancel.is_set():
                log.info("cancel requested", extra={"job": self._job.id})
                self._signals.cancel.set()

    def _look(self) -> State:
        """One short transaction: the job's state, a renewed lease when it is time, the newest progress."""
        job, settings = self._job, self._settings
        progress, self._signals.unwritten = self._signals.unwritten, None
        try:
            with transaction(self._engine) as conn:
                if time.monotonic() >= self._next_heartbeat or not self._reachable:
                    state = queue.heartbeat(conn, job.id, job.epoch, settings.lease_seconds)
                else:
                    state = queue.look(conn, job.id, job.epoch)
                if progress is not None:
                    queue.progress(conn, job.id, job.epoch, progress)
        except DependencyDown:
            # Newer progress, if any came meanwhile, is worth more.
            self._signals.unwritten = self._signals.unwritten or progress
            raise
        if time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + settings.heartbeat_seconds
        return state
