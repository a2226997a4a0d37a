"""How many requests are worked on at once, and how many clients may wait for something to happen.

A thread that waits costs next to nothing. One that works takes a share of the processor and a database connection, and
a thousand of them at the same moment, after a restart for instance, would only time each other out.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from flask import Flask, Request, g, request

#: How many times the free permits for waiting a tenant may have: alone it gets 7/8 of all, as one of two 7/15.
TIMES_FREE = 7
#: The view of event streams.
EVENTS = "events.list_events"
#: One of so many turns at most is taken by clients that wait.
SHARE_OF_WAITS = 8


class Turns:
    """So many may work at the same time; the others wait until it is their turn.

    Those who come to wait, or have waited, get one turn in :data:`SHARE_OF_WAITS` at most. They come together, when
    their waits end or after a restart, and hardly notice a moment more; a submission beside a thousand of them does.
    """

    def __init__(self, count: int) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._free_to_waits = threading.BoundedSemaphore(max(1, count // SHARE_OF_WAITS))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work for a client that waits, done outside of a request: a stream's for instance."""
        with self._free_to_waits, self._free:
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A request that waits lets others have its turn meanwhile."""
        self.end()
        try:
            yield
        finally:
            self.begin(waits=True)

    def begin(self, *, waits: bool) -> None:
        """The present request's turn; ``waits`` says whether it comes to wait or has waited."""
        taken = [self._free_to_waits, self._free] if waits else [self._free]
        for semaphore in taken:
            semaphore.acquire()
        g.turn = taken

    def end(self) -> None:
        # Not every context that is torn down belongs to a request that had begun.
        for semaphore in g.pop("turn", ()):
            semaphore.release()


class Permits:
    """So many clients may wait. One beyond is told so at once.

    Nor may one tenant take them all: each may have :data:`TIMES_FREE` times as many as are free at the moment. The last
    ones are thus kept for those who have few, and as clients come and go the tenants that want many come to have
    equally many (the dynamic thresholds of Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._taken: Counter[UUID] = Counter()

    @property
    def taken(self) -> int:
        return self._taken.total()

    @contextmanager
    def permit(self, tenant_id: UUID) -> Iterator[bool]:
        """Whether this client of a tenant may wait, for the length of the block."""
        with self._lock:
            granted = self._taken[tenant_id] < TIMES_FREE * (self._count - self._taken.total())
            self._taken[tenant_id] += granted
        try:
            yield granted
        finally:
            with self._lock:
                # Keeps no tenant that has none.
                self._taken -= Counter({tenant_id: granted})


def install(app: Flask, turns: Turns) -> None:
    """Has every request of ``app`` wait for its turn."""
    app.before_request(lambda: turns.begin(waits=_comes_to_wait(request)))
    app.teardown_request(lambda _exc: turns.end())


def _comes_to_wait(request: Request) -> bool:
    """Whether a request reads what may not have happened yet: an event stream or a long poll.

    A submission that waits is not meant: it is worked on first, and waits then.
    """
    return request.endpoint == EVENTS or (request.method == "GET" and "wait" in request.args)
