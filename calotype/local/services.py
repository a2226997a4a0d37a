"""The three services together: which are here, and starting them side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from calotype.local.errors import MissingProgramError
from calotype.local.postgres import postgres_program
from calotype.local.process import Command, Process, wait_until_ready
from calotype.local.redis import redis_program
from calotype.local.s3 import s3_program

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
