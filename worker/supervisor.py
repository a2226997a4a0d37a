"""The main thread of a worker: hears signals, watches the jobs and the drain loop, and ends the process when it must.

It does no work of its own that could block. Everything else runs in threads: the drain loop (and in it the handler),
the leases of the jobs in hand, the writing down of their outcomes, the worker's presence, and the doorbell listener.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

from sqlalchemy import Connection, Engine

from calotype import queue
from calotype.database import transaction
from calotype.errors import CalotypeError, JobFailed
from calotype.settings import Settings
from worker.drain import DrainLoop
from worker.execution import Executor
from worker.exit import ExitCode, leave
from worker.failures import retry_in
from worker.liveness import show_life
from worker.members import Member
from worker.presence import Presence

log = logging.getLogger(__name__)

#: How often it looks, seconds.
ROUND_SECONDS = 0.5
#: How long a job may take from its timeout to its next `check()`, before its process is ended.
TIMEOUT_GRACE_SECONDS = 30.0
#: How long the last writes about the jobs in hand are tried before the process ends without them.
LAST_WORD_SECONDS = 5.0
#: A gap between two rounds that only a stopped process explains.
FROZEN_SECONDS = 5.0

#: The last write about a job before its process ends.
LastWord = Callable[[Connection, Member], object]


@dataclass(frozen=True)
class Limits:
    """Short in tests."""

    timeout_grace_seconds: float = TIMEOUT_GRACE_SECONDS


class Supervisor:
    """Watches over one worker process; `run` returns when it has stopped as asked."""

    def __init__(
        self,
        *,
        engine: Engine,
        settings: Settings,
        drain: DrainLoop,
        executor: Executor,
        presence: Presence,
        shutdown: threading.Event,
        prepare: Callable[[], None],
        on_ready: Callable[[], None],
        limits: Limits | None = None,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._drain = drain
        self._executor = executor
        self._presence = presence
        self._shutdown = shutdown
        self._limits = limits or Limits()
        self._prepare = prepare
        self._on_ready = on_ready
        #: Set when everything is loaded and the drain loop goes round.
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._prepare_and_drain, name="drain", daemon=True)
        self._process = os.getpid()
        #: Stop signals received so far. A plain number, since a signal handler must not wait for a lock.
        self._stops = 0
        self._stop_requested_at: float | None = None
        self._last_round = time.monotonic()
        self._wake_read, self._wake_write = os.pipe()

    def run(self) -> None:
        """Start the drain loop and watch until it has ended as asked. May instead end the process."""
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        self._thread.start()
        while self._thread.is_alive():
            self._round()
            if self._shutdown.is_set() and not self.ready.is_set():
                # Nothing was claimed yet, and what is being loaded need not be waited for.
                return
            awake, _, _ = select.select([self._wake_read], [], [], ROUND_SECONDS)
            if awake:
                os.read(self._wake_read, 64)
        if not self._shutdown.is_set():
            leave(ExitCode.BROKEN, "the drain loop ended by itself; the traceback above says why")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A child that was forked (a data loader's worker): the signal is for it, and means what it means elsewhere.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._stops += 1
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            # The pipe is full of earlier signals: the loop is awake as it is.
            return

    def _prepare_and_drain(self) -> None:
        try:
            # Before the first claim: a job is better off waiting for any worker than for this one.
            self._prepare()
        except JobFailed as exc:
            leave(ExitCode.USAGE, exc.detail)
        while not self._presence.registered.wait(timeout=ROUND_SECONDS) and not self._shutdown.is_set():
            continue
        if self._shutdown.is_set():
            return
        self._drain.last_turn = time.monotonic()
        self.ready.set()
        self._presence.changed()
        self._on_ready()
        self._drain.run()
        # The last results may still be on their way.
        self._executor.wait()

    def _round(self) -> None:
        now = time.monotonic()
        if now - self._last_round > FROZEN_SECONDS:
            self._forgive(now - self._last_round)
        self._last_round = now
        if self._stops and not self._shutdown.is_set():
            self._begin_stop(now)
        running = self._executor.running
        if self._stops > 1:
            self._end(running, ExitCode.FORCED, "asked to stop a second time", _release)
        if self._stop_requested_at is not None and now - self._stop_requested_at > self._settings.shutdown_seconds:
            self._end(running, ExitCode.FORCED, "the jobs did not let go within shutdown_seconds", _release)
        if running:
            # The loop goes round with its jobs; when they end, its clock must not date from their beginning.
            self._drain.last_turn = now
            self._watch(running, now)
        elif self.ready.is_set() and now - self._drain.last_turn > self._stall_limit():
            self._end((), ExitCode.BROKEN, "the drain loop hangs outside a job", _release)
        if not self._presence.alive and not self._shutdown.is_set():
            self._end(running, ExitCode.BROKEN, "the presence thread ended by itself", _release)
        # Fresh means that this loop goes round, and it ends the process when another hangs.
        show_life(self._settings)

    def _begin_stop(self, now: float) -> None:
        log.info("stopping: no new jobs; the running ones are asked to let go")
        self._stop_requested_at = now
        self._shutdown.set()
        self._drain.ring()
        self._presence.changed()

    def _watch(self, running: Sequence[Member], now: float) -> None:
        """End the process if the jobs hang: a thread cannot be killed."""
        for members in _by_thread(running):
            # They share a call: a sign from any of them is one from all.
            silent = now - max(member.signals.last_sign for member in members)
            if silent > self._settings.stall_seconds:
                failure = JobFailed(
                    "stalled",
                    "The job stalled",
                    f"It showed no sign of life for {silent:.0f} s (CALOTYPE_STALL_SECONDS); its worker was restarted.",
                    retryable=True,
                )
                self._end(running, ExitCode.STALLED, failure.detail, self._failing(members, failure))
        for member in running:
            deadline = member.signals.deadline
            if member.open and deadline is not None and now > deadline + self._limits.timeout_grace_seconds:
                failure = JobFailed(
                    "timeout",
                    "The job ran out of time",
                    f"It was still running after its timeout_seconds ({member.job.timeout_seconds:g}) and did not "
                    "react; its worker was restarted.",
                    retryable=False,
                )
                self._end(running, ExitCode.TIMEOUT, failure.detail, self._failing((member,), failure))

    def _failing(self, blamed: Sequence[Member], failure: JobFailed) -> LastWord:
        """Fails the members that are to blame, or may be, and gives the others back."""

        def fail(conn: Connection, member: Member) -> object:
            if member not in blamed:
                return _release(conn, member)
            job = member.job
            wait = retry_in(failure, job.attempt, self._settings)
            return queue.fail(conn, job.id, job.epoch, queue.job_error(failure), wait)

        return fail

    def _end(self, running: Sequence[Member], code: ExitCode, reason: str, last_word: LastWord) -> NoReturn:
        """Leave at once, after trying for a moment to bring the jobs to their next state.

        The writes are fenced: should the hung thread come back to life meanwhile, one of the two is refused.
        """
        if running:
            writer = threading.Thread(target=self._say_all, args=(running, last_word), name="last-word", daemon=True)
            writer.start()
            writer.join(timeout=LAST_WORD_SECONDS)
        leave(code, reason)

    def _say_all(self, running: Sequence[Member], last_word: LastWord) -> None:
        for member in running:
            if member.open:
                self._say(member, last_word)
        # What is through with the device needs but a moment more.
        self._executor.wait(LAST_WORD_SECONDS / 2)
        for member in running:
            if not (member.open or member.settled):
                self._say(member, last_word)

    def _say(self, member: Member, last_word: LastWord) -> None:
        try:
            with transaction(self._engine) as conn:
                last_word(conn, member)
        except CalotypeError as exc:
            log.warning("left to the reconciler", extra={"job": member.job.id, "reason": exc.detail})

    def _forgive(self, gap: float) -> None:
        """The whole process was stopped (SIGSTOP, a suspended machine): that is nobody's stall."""
        log.warning("the process did not run for a while", extra={"seconds": round(gap, 1)})
        self._drain.last_turn += gap
        for member in self._executor.running:
            member.signals.last_sign += gap

    def _stall_limit(self) -> float:
        # Between jobs the loop waits for its clock and for Postgres only, whose statements and connections time out.
        return max(120.0, 10 * self._settings.idle_poll_seconds)


def _release(conn: Connection, member: Member) -> object:
    return queue.release(conn, member.job.id, member.job.epoch)


def _by_thread(running: Sequence[Member]) -> list[list[Member]]:
    """Those that the device works for, and those whose outcome is being written down, as far as there are any."""
    groups = [member for member in running if member.open], [member for member in running if not member.open]
    return [members for members in groups if members]
