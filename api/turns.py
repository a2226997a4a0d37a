"""How many requests are worked on at once, and how many clients may wait for something to happen.

A thread that waits costs next to nothing. One that works takes a share of the processor and a database connection, and
a thousand of them at the same moment, after a restart for instance, would only time each other out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Flask, g


class Turns:
    """So many may work at the same time; the others wait until it is their turn."""

    def __init__(self, count: int) -> None:
        self._free = threading.BoundedSemaphore(count)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work that is done outside of a request, a stream's for instance."""
        with self._free:
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A request that waits lets others have its turn meanwhile."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    def begin(self) -> None:
        self._free.acquire()
        g.has_turn = True

    def end(self) -> None:
        # Not every context that is torn down belongs to a request that had begun.
        if g.pop("has_turn", False):
            self._free.release()


class Permits:
    """So many clients may wait. One beyond is told so at once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def taken(self) -> int:
        return self._taken

    @contextmanager
    def permit(self) -> Iterator[bool]:
        """Whether this client may wait, for the length of the block."""
        with self._lock:
            granted = self._taken < self._count
            self._taken += granted
        try:
            yield granted
        finally:
            with self._lock:
                self._taken -= granted


def install(app: Flask, turns: Turns) -> None:
    """Has every request of ``app`` wait for its turn."""
    app.before_request(turns.begin)
    app.teardown_request(lambda _exc: turns.end())
