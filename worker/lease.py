"""Holds the leases of the jobs in hand, all from one thread with one Postgres connection.

Every `heartbeat_seconds` it renews each lease; every `cancel_poll_seconds` it asks for each job whether to cancel, and
writes its newest progress and what it said. All that is one transaction. A job whose epoch is stale, or whose row
somebody holds locked, does not keep the others from theirs. While Postgres cannot be reached it keeps trying and lets
the jobs go on: every write is fenced, so the worst that can happen is that the work was done twice. It never touches a
handler except through `Signals`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from calotype import queue
from calotype.database import transaction
from calotype.errors import DependencyDown, LeaseLost
from calotype.jobs import Progress, State
from calotype.settings import Settings
from worker.members import Member
from worker.said import Line, tell

log = logging.getLogger(__name__)

#: How long one job's row may keep the round waiting; PostgreSQL's notation.
LOCK_TIMEOUT = "2s"


class LeaseKeeper:
    """Keeps leases from `keep` to `let_go`. Its thread lives as long as there are any."""

    def __init__(self, engine: Engine, settings: Settings, announce: Callable[[UUID], None]) -> None:
        self._engine = engine
        self._settings = settings
        self._announce = announce
        self._changed = threading.Condition()
        #: Each member with the monotonic time of its next heartbeat.
        self._kept: dict[Member, float] = {}
        self._reachable = True
        self._thread: threading.Thread | None = None

    def keep(self, members: Iterable[Member]) -> None:
        """Begin with jobs that were just claimed: the claim itself was their first heartbeat."""
        due = time.monotonic() + self._settings.heartbeat_seconds
        with self._changed:
            self._kept.update(dict.fromkeys(members, due))
            if self._kept and self._thread is None:
                self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)
                self._thread.start()

    def let_go(self, member: Member) -> None:
        """The job is in nobody's hands any more, or in another worker's."""
        with self._changed:
            self._kept.pop(member, None)
            self._changed.notify_all()

    def rest(self) -> None:
        """Wait for a moment until the thread has ended, where nothing is kept any more."""
        with self._changed:
            thread = None if self._kept else self._thread
        if thread is not None:
            # It may be inside a connection attempt, which need not be waited for: a fenced write does no harm.
            thread.join(timeout=self._settings.cancel_poll_seconds)

    def _keep(self) -> None:
        pause = min(self._settings.cancel_poll_seconds, self._settings.heartbeat_seconds)
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not self._kept, timeout=pause):
                    self._thread = None
                    return
            try:
                self._round()
            except DependencyDown as exc:
                if self._reachable:
                    log.warning("leases cannot be renewed, working on", extra={"reason": exc.detail})
                self._reachable = False
            except Exception:
                # Whatever it was: without this thread the leases lapse, and the jobs are run again and again.
                log.exception("leases not renewed, trying again")

    def _round(self) -> None:
        with self._changed:
            kept = dict(self._kept)
        with ExitStack() as stack:
            turns = [self._turn(member, due, stack) for member, due in kept.items()]
            # In one order everywhere, so that transactions that hold several rows cannot wait for each other.
            turns.sort(key=lambda turn: turn.member.job.id)
            try:
                self._take_all(turns)
            except Exception:
                for turn in turns:
                    turn.keep_progress()
                raise
        self._reachable = True
        for turn in turns:
            self._note(turn)

    def _turn(self, member: Member, due: float, stack: ExitStack) -> _Turn:
        signals = member.signals
        progress, signals.unwritten = signals.unwritten, None
        return _Turn(
            member=member,
            # After an outage at once, for all of them.
            renews=time.monotonic() >= due or not self._reachable,
            progress=progress,
            lines=stack.enter_context(signals.said.taken(wait=False)),
        )

    def _take_all(self, turns: list[_Turn]) -> None:
        with transaction(self._engine) as conn:
            if any(turn.writes for turn in turns):
                conn.execute(sa.select(sa.func.set_config("lock_timeout", LOCK_TIMEOUT, True)))
            for turn in turns:
                self._take(conn, turn)

    def _take(self, conn: Connection, turn: _Turn) -> None:
        """One job's turn; whatever is wrong with its row alone ends there."""
        try:
            if turn.writes:
                with conn.begin_nested():
                    state = self._write(conn, turn)
            else:
                state = queue.look(conn, turn.member.job.id, turn.member.job.epoch)
        except LeaseLost:
            self._lost(turn.member)
        except DBAPIError as exc:
            if exc.connection_invalidated or not turn.writes:
                raise
            log.warning("lease not renewed this time", extra={"job": turn.member.job.id, "reason": str(exc.orig)})
            turn.keep_progress()
            turn.member.signals.said.give_back(turn.lines)
        else:
            turn.done = True
            if state is State.CANCELING and not turn.member.signals.cancel.is_set():
                log.info("cancel requested", extra={"job": turn.member.job.id})
                turn.member.signals.cancel.set()

    def _write(self, conn: Connection, turn: _Turn) -> State:
        job = turn.member.job
        if turn.renews:
            state = queue.heartbeat(conn, job.id, job.epoch, self._settings.lease_seconds)
        else:
            state = queue.look(conn, job.id, job.epoch)
        if turn.progress is not None:
            queue.progress(conn, job.id, job.epoch, turn.progress)
        tell(conn, job, turn.lines)
        return state

    def _note(self, turn: _Turn) -> None:
        """What follows from a turn that is committed."""
        if not turn.done:
            return
        if turn.renews:
            with self._changed:
                if turn.member in self._kept:
                    self._kept[turn.member] = time.monotonic() + self._settings.heartbeat_seconds
        if turn.progress is not None or turn.lines:
            self._announce(turn.member.job.id)

    def _lost(self, member: Member) -> None:
        if not member.signals.settling:
            log.warning("lease lost", extra={"job": member.job.id, "epoch": member.job.epoch})
            member.signals.lease_lost.set()
        self.let_go(member)


@dataclass(kw_only=True)
class _Turn:
    """What one round does for one job."""

    member: Member
    renews: bool
    progress: Progress | None
    lines: list[Line]
    #: Whether it went as it should.
    done: bool = False

    @property
    def writes(self) -> bool:
        return self.renews or self.progress is not None or bool(self.lines)

    def keep_progress(self) -> None:
        """It was not written; newer progress, if any came meanwhile, is worth more."""
        self.member.signals.unwritten = self.member.signals.unwritten or self.progress
