"""A Redis that only one test feels."""

from __future__ import annotations

import secrets
import signal
from pathlib import Path

from calotype.local.process import Process, free_port
from calotype.local.redis import Redis
from calotype.local.services import start_services, stop_processes


class Broker:
    """A Redis that can be killed, stopped and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._service = Redis(
            directory=folder / "redis", port=free_port(), password=secrets.token_urlsafe(8), log=folder / "redis.log"
        )
        self.url = self._service.url
        self._process: Process | None = None

    def start(self) -> None:
        (self._process,) = start_services([self._service])

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.stop()
            self._process = None

    def freeze(self, frozen: bool) -> None:
        assert self._process is not None
        self._process.signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self.freeze(False)
            stop_processes([self._process])
