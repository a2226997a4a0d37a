"""The suite's own servers, which a test may kill, freeze and start again: same port, same data."""

from __future__ import annotations

import dataclasses
import secrets
import signal
import time
from pathlib import Path
from typing import Generic, TypeVar

from calotype.local.errors import StackError
from calotype.local.postgres import Postgres
from calotype.local.process import Command, Process, free_port, wait_until_ready
from calotype.local.redis import Redis
from calotype.local.s3 import S3
from calotype.local.services import READY_SECONDS, Service

S = TypeVar("S", bound=Service)

#: Enough for all that a test or a soak starts, and soon exhausted by one that wants that.
CONNECTIONS = 80
#: How often a server is started that ends at once, because what it left when it was killed is still in its way.
STARTS = 50


class CrashSafePostgres(Postgres):
    """Loses no commit when it is killed, as ``durable=False`` would; a power cut it need not survive here."""

    def command(self) -> Command:
        command = super().command()
        argv = list(command.argv)
        for option in ("synchronous_commit=off", "full_page_writes=off"):
            place = argv.index(option)
            del argv[place - 1 : place + 1]
        argv[argv.index("max_connections=200")] = f"max_connections={CONNECTIONS}"
        return dataclasses.replace(command, argv=argv)


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
    postgres = CrashSafePostgres(
        directory=folder / "postgres",
        port=free_port(),
        password=secrets.token_urlsafe(16),
        log=folder / "postgres.log",
        durable=False,
    )
    redis = Redis(
        directory=folder / "redis", port=free_port(), password=secrets.token_urlsafe(16), log=folder / "redis.log"
    )
    s3 = S3(
        directory=folder / "s3",
        port=free_port(),
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        log=folder / "s3.log",
    )
    made = Servers(postgres=Server(postgres), redis=Server(redis), s3=Server(s3))
    for service in (postgres, redis, s3):
        service.prepare()
    made.start()
    return made
