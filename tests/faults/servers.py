"""The suite's own servers, which a test may kill, freeze and start again: same port, same data."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import Generic, TypeVar

from calotype.local.errors import StackError
from calotype.local.postgres import Postgres
from calotype.local.process import Process, wait_until_ready
from calotype.local.redis import Redis
from calotype.local.s3 import S3
from calotype.local.services import READY_SECONDS, Service, make_services

S = TypeVar("S", bound=Service)

POSTGRES_OPTIONS = {
    # Loses no commit when it is killed; a power cut it need not survive here.
    "synchronous_commit": "on",
    "full_page_writes": "on",
    # Enough for all that a test or a soak starts, and soon exhausted by one that wants that.
    "max_connections": "80",
}
#: How often a server is started that ends at once, because what it left when it was killed is still in its way.
STARTS = 50


class Server(Generic[S]):
    """One service, and the process that runs it unless a test has ended that."""

    def __init__(self, service: S) -> None:
        self.service = service
        self._process: Process | None = None

    @property
    def up(self) -> bool:
        """Whether its process is there, frozen or not."""
        return self._process is not None and self._process.exit_code is None

    def start(self) -> None:
        """Start or thaw it, and wait until it answers."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
        for _ in range(STARTS):
            if self._process is None or self._process.exit_code is not None:
                self._process = Process(self.service.command())
            try:
                wait_until_ready(self._process, self.service.ready, READY_SECONDS)
            except StackError:
                if self._process.exit_code is None:
                    raise
                time.sleep(0.2)
            else:
                return
        raise AssertionError(f"{self.service.name} does not start:\n{self._process and self._process.log_tail()}")

    def stop(self) -> None:
        """Ask it to end, as an operator would, and wait until it has."""
        if self._process is not None:
            self._process.signal(signal.SIGCONT)
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            self._process.wait(10.0)
            self._process = None

    def freeze(self) -> None:
        """Let it accept connections, which the kernel does for it, and answer nothing."""
        if self._process is not None:
            self._process.signal(signal.SIGSTOP)

    def restart(self) -> None:
        """Killed and back at once."""
        self.kill()
        self.start()


@dataclasses.dataclass(frozen=True)
class Servers:
    """Postgres, Redis and S3 of the suite."""

    postgres: Server[Postgres]
    redis: Server[Redis]
    s3: Server[S3]

    def start(self) -> None:
        for server in (self.postgres, self.redis, self.s3):
            server.start()

    def stop(self) -> None:
        for server in (self.postgres, self.redis, self.s3):
            server.stop()


def make_servers(folder: Path) -> Servers:
    """Servers with their data below a new folder, started. An unprivileged Postgres must be able to enter it."""
    folder.mkdir(mode=0o711)
    made = make_services(folder, durable=False)
    made = dataclasses.replace(made, postgres=dataclasses.replace(made.postgres, options=POSTGRES_OPTIONS))
    for service in made.all:
        service.prepare()
    servers = Servers(postgres=Server(made.postgres), redis=Server(made.redis), s3=Server(made.s3))
    servers.start()
    return servers
