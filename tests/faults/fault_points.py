"""Faults that are built into one worker process, by name: `arm("die-before-finish-commit")`.

Armed before the worker's own modules are imported, because these bind what is replaced here at their import.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine

from calotype import database, queue

#: Names of modules whose clock a fault turns.
CLOCKED = ("calotype", "worker", "celery", "kombu", "minio")
#: The queue's functions that hand out jobs.
CLAIMS = tuple(name for name in ("claim", "claim_batch") if hasattr(queue, name))


def arm(fault: str) -> None:
    """Build a fault in: `name` or `name=number`."""
    name, _, value = fault.partition("=")
    FAULTS[name](float(value or 1))


def die() -> None:
    """As the kernel's out-of-memory killer ends a process: between two instructions."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Moved(threading.local):
    """Whether the transaction of this thread has moved a job."""

    any = False


def freeze() -> None:
    """As a machine that is suspended: between two instructions, with everything open."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _at_commit_of(*names: str, before: bool, strike: Callable[[], None] = die) -> Callable[[float], None]:
    """Strike before or after the commit of a transaction in which one of these functions of the queue moved a job."""

    def build(_: float) -> None:
        moved, real = _Moved(), database.transaction

        def watch(move: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*arguments: Any, **named: Any) -> Any:
                result = move(*arguments, **named)
                moved.any = moved.any or bool(getattr(result, "jobs", result))
                return result

            return watched

        @contextmanager
        def transaction(engine: Engine) -> Iterator[Connection]:
            moved.any = False
            with real(engine) as conn:
                yield conn
                if before and moved.any:
                    strike()
            if moved.any and not before:
                strike()

        for name in names:
            setattr(queue, name, watch(getattr(queue, name)))
        database.transaction = transaction

    return build


def _freeze_in_a_claim(seconds: float) -> None:
    """Freeze before the commit of a claim, once; Postgres ends this process's idle transactions after `seconds`."""
    database.IDLE_IN_TRANSACTION_MS = int(1000 * seconds)
    strikes = [freeze]
    _at_commit_of(*CLAIMS, before=True, strike=lambda: strikes.pop()() if strikes else None)(1)


def _die_between_bell_and_claim(_: float) -> None:
    from worker.drain import DrainLoop

    heard, ring = threading.Event(), DrainLoop.ring

    def note(loop: DrainLoop) -> int:
        heard.set()
        return ring(loop)

    def dying(claim: Callable[..., Any]) -> Callable[..., Any]:
        def claim_or_die(*arguments: Any, **named: Any) -> Any:
            if heard.is_set():
                die()
            return claim(*arguments, **named)

        return claim_or_die

    DrainLoop.ring = note  # type: ignore[method-assign]
    for name in CLAIMS:
        setattr(queue, name, dying(getattr(queue, name)))


def _lose_the_lease_thread(_: float) -> None:
    """Nobody renews the lease, and nobody tells the handler that it lapsed."""
    from worker.lease import LeaseKeeper

    LeaseKeeper._keep = lambda keeper: None  # type: ignore[method-assign]


def _fill_the_disk(times: float) -> None:
    """The first `times` files that are downloaded go to a device that is full."""
    left, real = [int(times)], Path.open

    def open_or_full(path: Path, *arguments: Any, **named: Any) -> IO[Any]:
        if path.suffix == ".part" and left[0] > 0:
            left[0] -= 1
            path.touch()
            return real(Path("/dev/full"), *arguments, **named)
        return real(path, *arguments, **named)

    Path.open = open_or_full  # type: ignore[method-assign,assignment]


def _turn_the_clock(seconds: float) -> None:
    """Every wall clock of the process goes wrong by so much; the monotonic one stays."""
    importlib.import_module("worker.process")
    real_time = time.time
    time.time = lambda: real_time() + seconds

    class Turned(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return datetime.now() + timedelta(seconds=seconds)

    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in CLOCKED:
            continue
        for attribute, value in list(vars(module).items()):
            if value is datetime:
                setattr(module, attribute, Turned)
            elif value is real_time:
                setattr(module, attribute, time.time)


FAULTS: dict[str, Callable[[float], None]] = {
    "die-after-claim-commit": _at_commit_of(*CLAIMS, before=False),
    "die-before-finish-commit": _at_commit_of("finish", before=True),
    "die-after-finish-commit": _at_commit_of("finish", before=False),
    "freeze-in-a-claim": _freeze_in_a_claim,
    "die-between-bell-and-claim": _die_between_bell_and_claim,
    "no-lease-thread": _lose_the_lease_thread,
    "full-disk": _fill_the_disk,
    "clock": _turn_the_clock,
}
