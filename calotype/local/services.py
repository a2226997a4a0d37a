"""The three services together: which programs are here, making the three of one stack, starting them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from calotype.local.data_dir import Secrets
from calotype.local.errors import MissingProgramError
from calotype.local.postgres import Postgres, postgres_program
from calotype.local.process import Command, Process, free_port, wait_until_ready
from calotype.local.redis import Redis, redis_program
from calotype.local.s3 import S3, s3_program

#: The first start of Postgres on a slow disk takes longest.
READY_SECONDS = 60.0


class Service(Protocol):
    """A server that the embedded stack brings along."""

    @property
    def name(self) -> str: ...

    def prepare(self) -> None:
        """Make what it needs on disk."""

    def command(self) -> Command: ...

    def ready(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Services:
    """The three of one stack."""

    postgres: Postgres
    redis: Redis
    s3: S3

    @property
    def all(self) -> tuple[Service, ...]:
        return (self.postgres, self.redis, self.s3)


def make_services(
    folder: Path, *, logs: Path | None = None, secrets: Secrets | None = None, durable: bool = True
) -> Services:
    """Services on free ports, which nobody has started yet.

    Each has its data in a folder of its name below ``folder`` and its log in ``logs``, by default ``folder`` too. An
    unprivileged Postgres must be able to enter ``folder``, or keeps its data elsewhere. Without ``secrets`` they are
    drawn. ``durable=False``: see :class:`Postgres`.
    """
    logs, secrets = logs or folder, secrets or Secrets.drawn()
    return Services(
        postgres=Postgres(
            directory=folder / "postgres",
            port=free_port(),
            password=secrets.database_password,
            log=logs / "postgres.log",
            durable=durable,
        ),
        redis=Redis(
            directory=folder / "redis",
            port=free_port(),
            password=secrets.broker_password,
            log=logs / "redis.log",
        ),
        s3=S3(
            directory=folder / "s3",
            port=free_port(),
            access_key=secrets.s3_access_key,
            secret_key=secrets.s3_secret_key,
            log=logs / "s3.log",
        ),
    )


def missing_programs() -> list[MissingProgramError]:
    """What is not installed of the programs that the embedded stack runs."""
    missing = []
    programs: tuple[Callable[[], Path], ...] = (
        partial(postgres_program, "postgres"),
        redis_program,
        s3_program,
    )
    for look in programs:
        try:
            look()
        except MissingProgramError as exc:
            missing.append(exc)
    return missing


def start_services(services: Sequence[Service]) -> list[Process]:
    """Start all, then wait until each answers. When one fails, stop those started and raise StackError."""
    started: list[Process] = []
    try:
        for service in services:
            service.prepare()
            started.append(Process(service.command()))
        for service, process in zip(services, started, strict=True):
            wait_until_ready(process, service.ready, READY_SECONDS)
    except BaseException:
        stop_processes(started)
        raise
    return started


def stop_processes(processes: Sequence[Process]) -> None:
    """Stop side by side: every stop signal first, then the waits."""
    for process in processes:
        process.signal(process.command.stop_signal)
    for process in processes:
        process.stop()
