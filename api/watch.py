"""One watcher a process wakes the threads that wait for jobs; none of them asks the database by itself.

A job that changed is announced through Redis, and its waiters are woken at once. Whatever Redis does, one query for
all watched jobs is made at an interval: often while Redis is not heard, seldom while it is, for an announcement may be
lost.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy as sa

from api.notices import Notices
from calotype import events
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.events import Version
from calotype.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between two queries while Redis is not heard.
POLL_SECONDS = 0.5
#: The same while it is: how long a lost announcement can go unnoticed.
SAFETY_SECONDS = 5.0


class Waiter:
    """One thread's wait for one job. In turn: :meth:`begin`, read the job, :meth:`saw`, :meth:`wait`."""

    def __init__(self, job_id: UUID) -> None:
        self.job_id = job_id
        self._news = threading.Event()
        self._seen: Version | None = None

    def begin(self) -> None:
        """What is announced from now on may be newer than what is read next."""
        self._news.clear()

    def saw(self, version: Version) -> None:
        """How far the job was when it was read."""
        self._seen = version

    def wait(self, seconds: float) -> bool:
        """Whether the job may have changed since :meth:`begin`, or the server stops; False after ``seconds``."""
        return self._news.wait(seconds)

    def wake(self) -> None:
        self._news.set()

    def knows(self, version: Version | None) -> bool:
        return version is not None and version == self._seen


class Watcher:
    """Wakes waiters. Its threads begin with the first one, so that a server may fork before."""

    def __init__(self, engine: sa.Engine, settings: Settings) -> None:
        self._engine = engine
        self._notices = Notices(settings, self._wake, self._set_live)
        self._poller = threading.Thread(target=self._poll_on, name="watcher", daemon=True)
        self._waiters: dict[UUID, set[Waiter]] = {}
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._live = False
        self._away = False
        self._started = False
        self._stopped = False

    @contextmanager
    def watch(self, job_id: UUID) -> Iterator[Waiter]:
        """A waiter that is woken when the job changes or goes, for the length of the block."""
        waiter = Waiter(job_id)
        with self._changed:
            self._start()
            self._waiters.setdefault(job_id, set()).add(waiter)
            self._changed.notify()
            if self._stopped:
                waiter.wake()
        try:
            yield waiter
        finally:
            with self._changed:
                others = self._waiters[job_id]
                others.discard(waiter)
                if not others:
                    del self._waiters[job_id]

    def stop(self) -> None:
        """Wakes everybody, now and from now on: the server stops."""
        with self._changed:
            self._stopped = True
            self._hurry.set()
            self._changed.notify()
            for waiter in self._all():
                waiter.wake()

    def close(self) -> None:
        """Stops, and ends the threads."""
        self.stop()
        if self._started:
            self._notices.close()
            self._poller.join(4.0)

    @property
    def live(self) -> bool:
        """Whether announcements are heard."""
        return self._live

    def _start(self) -> None:
        if not self._started and not self._stopped:
            self._started = True
            self._notices.start()
            self._poller.start()

    def _all(self) -> list[Waiter]:
        return [waiter for waiters in self._waiters.values() for waiter in waiters]

    def _wake(self, job_id: UUID) -> None:
        with self._changed:
            for waiter in self._waiters.get(job_id, ()):
                waiter.wake()

    def _set_live(self, live: bool) -> None:
        self._live = live
        # Either way: what was announced while nobody heard is seen by asking.
        self._hurry.set()

    def _poll_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiters or self._stopped)
            self._hurry.wait(SAFETY_SECONDS if self._live else POLL_SECONDS)
            self._hurry.clear()
            if self._stopped:
                return
            try:
                self._poll()
            except DependencyDown as exc:
                if not self._away:
                    logger.warning("waiting clients learn nothing now", extra={"reason": exc.detail})
                self._away = True
            except Exception:
                logger.exception("looking for changed jobs failed")

    def _poll(self) -> None:
        """Wakes whoever has not seen what a job is now."""
        with self._changed:
            waiters = self._all()
        if not waiters:
            return
        with transaction(self._engine) as conn:
            found = events.versions(conn, {waiter.job_id for waiter in waiters})
        self._away = False
        for waiter in waiters:
            if not waiter.knows(found.get(waiter.job_id)):
                waiter.wake()
