"""What a running job says, log lines and metrics, on its way from the handler into the job's events."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from calotype import queue
from calotype.jobs import Job

log = logging.getLogger(__name__)

#: The type of an event and its data, as `queue.tell` takes them.
Line = tuple[str, Mapping[str, Any]]

#: Lines that wait at most: the lease thread empties it every second, unless Postgres is away.
MOST_LINES = 500
#: Characters of a line that are kept.
MOST_CHARACTERS = 4000


class Said:
    """Lines that wait to be written, oldest first; where there are too many, the oldest go and a note says so."""

    def __init__(self, most: int = MOST_LINES) -> None:
        self._most = most
        self._lines: deque[Line] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        #: Held from taking lines to the commit, so that two writers cannot change their order.
        self._writing = threading.Lock()

    def add(self, kind: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._lines.append((kind, data))
            self._shorten()

    @contextmanager
    def taken(self, *, wait: bool) -> Iterator[list[Line]]:
        """All that waits, to be written and committed inside the block; what raises there puts it back.

        Without `wait` nothing is taken while another thread writes.
        """
        if not self._writing.acquire(blocking=wait):
            yield []
            return
        try:
            lines = self._take()
            try:
                yield lines
            except BaseException:
                self.give_back(lines)
                raise
        finally:
            self._writing.release()

    def give_back(self, lines: list[Line]) -> None:
        """Lines that were taken and could not be written."""
        with self._lock:
            self._lines.extendleft(reversed(lines))
            self._shorten()

    def _take(self) -> list[Line]:
        with self._lock:
            note = [_note(self._dropped)] if self._dropped else []
            lines = [*note, *self._lines]
            self._lines.clear()
            self._dropped = 0
            return lines

    def _shorten(self) -> None:
        while len(self._lines) > self._most:
            self._lines.popleft()
            self._dropped += 1


def tell(conn: Connection, job: Job, lines: list[Line]) -> None:
    """Write lines into a job's events. Lines that Postgres will not have are lost, the transaction is not.

    Raises LeaseLost when the epoch is stale.
    """
    if not lines:
        return
    try:
        with conn.begin_nested():
            queue.tell(conn, job.id, job.epoch, lines)
    except DBAPIError as exc:
        if exc.connection_invalidated or isinstance(exc, OperationalError | InterfaceError):
            raise
        log.warning("lines not stored", extra={"lines": len(lines), "reason": str(exc.orig)})


def log_line(message: str) -> Line:
    """A message as an event, of a length and of characters that Postgres can store."""
    text = message if len(message) <= MOST_CHARACTERS else message[:MOST_CHARACTERS] + "…"
    return "log", {"message": text.encode("utf-8", "replace").decode("utf-8")}


def metrics_line(values: Mapping[str, float | None]) -> Line:
    """Measurements as an event; JSON has no word for infinities and not-a-number: null."""
    known = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    return "metrics", known


def _note(dropped: int) -> Line:
    return "log", {"message": f"{dropped} older lines were dropped: they came faster than they could be written."}
