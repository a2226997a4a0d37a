"""Tells the rest of the system that this worker is there, what it has loaded and what it is doing."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Engine

import calotype
from calotype import workers
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.settings import Settings
from calotype.workers import Worker, WorkerInfo, WorkerState
from worker.device import describe_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a worker says of itself now."""

    state: WorkerState
    #: Keys of the models in memory.
    loaded: Sequence[str]
    #: How long ago it last asked for work; None: never yet.
    looked_seconds_ago: float | None = None


class Presence:
    """Keeps the worker's row from a thread of its own."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: Settings,
        worker_id: UUID,
        name: str,
        queues: Sequence[str],
        report: Callable[[], Report],
        on_draining: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._info = WorkerInfo(
            id=worker_id,
            name=name,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            queues=tuple(queues),
            device=describe_device(settings.device),
            version=calotype.__version__,
            pool=settings.pool,
        )
        self._report = report
        #: Called when an operator has drained this worker, or lets it take jobs again.
        self._on_draining = on_draining
        #: Set once the row exists; claims refer to it.
        self.registered = threading.Event()
        #: Whether an operator wants this worker to take no more jobs, as of the latest answer.
        self.draining = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs, as it must from start to stop."""
        return self._thread.is_alive()

    def changed(self) -> None:
        """What the worker does has changed: say so soon."""
        self._wake.set()

    def stop(self, seconds: float) -> None:
        """Retire the worker, giving up after `seconds`; the reconciler retires those that could not say goodbye."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=seconds)

    def _keep(self) -> None:
        reachable = True
        while not self._stopping.is_set():
            try:
                self._say()
                reachable = True
            except DependencyDown as exc:
                if reachable:
                    log.warning("cannot say that this worker lives", extra={"reason": exc.detail})
                reachable = False
            self._pause()
        self._retire()

    def _pause(self) -> None:
        """Until the next heartbeat, or a change; a burst of changes (many short jobs) is told once a second."""
        heartbeat = self._settings.heartbeat_seconds
        least = min(1.0, heartbeat)
        self._stopping.wait(least)
        self._wake.wait(heartbeat - least)
        self._wake.clear()

    def _say(self) -> None:
        with transaction(self._engine) as conn:
            if not self.registered.is_set() and not sa.inspect(conn).has_table("workers"):
                raise DependencyDown("The database has no tables yet; run `calotype migrate`.")
            row = self._report_to(conn) if self.registered.is_set() else None
            if row is None:
                # The first time, or after the row was retired while this process could not be heard.
                workers.register(conn, self._info)
                row = self._report_to(conn)
        self._note(row)
        if not self.registered.is_set():
            log.info("registered", extra={"worker": self._info.id, "worker_name": self._info.name})
        self.registered.set()

    def _report_to(self, conn: sa.Connection) -> Worker | None:
        said = self._report()
        return workers.seen(conn, self._info.id, said.state, said.loaded, looked_seconds_ago=said.looked_seconds_ago)

    def _note(self, row: Worker | None) -> None:
        draining = row is not None and row.draining
        if draining is not self.draining:
            log.info("draining: no new jobs" if draining else "taking jobs again", extra={"worker": self._info.id})
            self.draining = draining
            # The state that was just reported is no longer right.
            self.changed()
            self._on_draining()

    def _retire(self) -> None:
        try:
            with transaction(self._engine) as conn:
                workers.retire(conn, self._info.id)
        except DependencyDown as exc:
            log.warning("left without saying goodbye", extra={"reason": exc.detail})
