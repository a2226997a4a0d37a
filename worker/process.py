"""One worker process, put together from its parts."""

from __future__ import annotations

import gc
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence

from calotype.artifacts import ObjectStore
from calotype.database import connect_engine
from calotype.doorbell import Doorbell
from calotype.ids import new_id
from calotype.settings import Settings
from calotype.workers import WorkerState
from worker.app import Listener, make_app
from worker.cache import ModelCache
from worker.drain import DrainLoop
from worker.execution import Executor, load_handler
from worker.exit import ExitCode, leave
from worker.presence import Presence, Report
from worker.supervisor import Limits, Supervisor

log = logging.getLogger("worker")

#: How long each part gets to end when the drain loop has ended, seconds.
GOODBYE_SECONDS = 3.0


class WorkerProcess:
    """Serves some queues until it is asked to stop."""

    def __init__(self, settings: Settings, queues: Sequence[str], name: str, limits: Limits | None = None) -> None:
        self._queues = tuple(queues)
        self._id = new_id()
        self._shutdown = threading.Event()
        # Heartbeats must not wait for a connection that the job holds.
        engine = connect_engine(settings, application_name=f"worker {name}", pool_size=6)
        lease_engine = connect_engine(settings, application_name=f"lease {name}", pool_size=1)
        self._engines = (engine, lease_engine)
        self._doorbell = Doorbell(settings)
        store = ObjectStore(settings)
        self._models = ModelCache(settings, store)
        self._executor = Executor(
            engine=engine,
            lease_engine=lease_engine,
            settings=settings,
            store=store,
            models=self._models,
            doorbell=self._doorbell,
            shutdown=self._shutdown,
        )
        self._drain = drain = DrainLoop(
            engine=engine,
            settings=settings,
            worker_id=self._id,
            queues=self._queues,
            # Not `execute`: the next batch is claimed while the files of the last are on their way.
            execute=self._executor.compute,
            shutdown=self._shutdown,
            loaded=self._models.loaded,
        )
        self._presence = Presence(
            engine=engine,
            settings=settings,
            worker_id=self._id,
            name=name,
            queues=self._queues,
            report=self._report,
            # A look, which finds out by itself what it may do.
            on_draining=drain.ring,
        )
        self._executor.on_change = self._presence.changed
        self._executor.on_settled = drain.ring
        app = make_app(settings, self._queues, drain, self._doorbell)
        self._listener = Listener(app, f"{name}-{os.getpid()}@{socket.gethostname()}")
        self._supervisor = Supervisor(
            engine=engine,
            settings=settings,
            drain=drain,
            executor=self._executor,
            presence=self._presence,
            shutdown=self._shutdown,
            prepare=self._load_code,
            # Not before: a bell that a worker hears while it loads is one that a ready worker does not hear.
            on_ready=self._listener.start,
            limits=limits,
        )

    def run(self) -> int:
        """Work until asked to stop; returns the exit status. To be called from the main thread."""
        log.info("serving", extra={"queues": ",".join(self._queues), "worker": self._id})
        self._presence.start()
        self._supervisor.run()
        self._listener.stop(GOODBYE_SECONDS)
        self._presence.stop(GOODBYE_SECONDS)
        self._doorbell.close()
        for engine in self._engines:
            engine.dispose()
        log.info("stopped", extra={"worker": self._id})
        if not self._supervisor.ready.is_set():
            # A thread is still loading code; an orderly end of the interpreter would pull it from under its feet.
            leave(ExitCode.CLEAN, "stopped before it was ready")
        return ExitCode.CLEAN

    def _report(self) -> Report:
        looked = self._drain.last_look
        return Report(
            state=self._state(),
            loaded=self._models.loaded(),
            looked_seconds_ago=None if looked is None else time.monotonic() - looked,
        )

    def _state(self) -> WorkerState:
        if self._shutdown.is_set() or self._presence.draining:
            return WorkerState.DRAINING
        if not self._supervisor.ready.is_set():
            return WorkerState.STARTING
        return WorkerState.BUSY if self._executor.running else WorkerState.IDLE

    def _load_code(self) -> None:
        for name in self._queues:
            load_handler(name)
        # All that is loaded by now stays. The collector would go through it again and again, each time for as long as a
        # job takes to be picked up.
        gc.collect()
        gc.freeze()
