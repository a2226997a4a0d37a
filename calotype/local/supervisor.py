"""Keeps the parts of a stack running: starts them, restarts what dies with backoff, stops them in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from calotype.local.errors import StackError
from calotype.local.process import Command, Process

#: A part that lived this long has recovered: its next death counts as the first.
STEADY_SECONDS = 30.0
FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
#: Deaths in a row after which the reader is told, with the end of the log.
DEATHS_UNTIL_ALARM = 3


class Phase(StrEnum):
    """Where a part stands, as the health display shows it."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the stack."""

    name: str
    command: Command
    #: Whether it does its work; asked until it says yes once.
    ready: Callable[[Process], bool]
    #: Parts of a higher stage are stopped before those of a lower one.
    stage: int
    #: Longest wait for the first "ready".
    ready_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """A snapshot for the health display."""

    name: str
    phase: Phase
    pid: int | None
    uptime_seconds: float
    restarts: int


class StopRequestedError(Exception):
    """The stack was asked to stop while it was still starting."""


class Supervised:
    """A part with its present process and its history of deaths."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.process = Process(part.command)
        self.phase = Phase.STARTING
        self.restarts = 0
        self._deaths = 0
        self._restart_at = 0.0

    def check(self, report: Callable[[str], None]) -> None:
        """Look once: note readiness, note death, restart when the backoff is over. Never blocks for long."""
        if self.phase is Phase.RESTARTING:
            if time.monotonic() >= self._restart_at:
                self._restart(report)
            return
        code = self.process.exit_code
        if code is not None:
            self._died(code, report)
        elif self.phase is Phase.STARTING and self.part.ready(self.process):
            self.phase = Phase.READY
            if self.restarts:
                report(f"{self.part.name} is back (pid {self.process.pid})")

    def status(self) -> PartStatus:
        running = self.process.exit_code is None
        return PartStatus(
            name=self.part.name,
            phase=self.phase if running or self.phase is Phase.RESTARTING else Phase.STOPPED,
            pid=self.process.pid if running else None,
            uptime_seconds=time.monotonic() - self.process.started_at if running else 0.0,
            restarts=self.restarts,
        )

    def _restart(self, report: Callable[[str], None]) -> None:
        try:
            self.process = Process(self.part.command)
        except StackError as exc:
            self._restart_at = time.monotonic() + LONGEST_BACKOFF_SECONDS
            report(f"{exc} Trying again in {LONGEST_BACKOFF_SECONDS:g} s.")
            return
        self.restarts += 1
        self.phase = Phase.STARTING

    def _died(self, code: int, report: Callable[[str], None]) -> None:
        lived = time.monotonic() - self.process.started_at
        # What the dead process had started must not live on beside its successor.
        self.process.stop(grace=0.0)
        self._deaths = 1 if lived > STEADY_SECONDS else self._deaths + 1
        wait = min(FIRST_BACKOFF_SECONDS * 2 ** (self._deaths - 1), LONGEST_BACKOFF_SECONDS)
        self._restart_at = time.monotonic() + wait
        self.phase = Phase.RESTARTING
        report(f"{self.part.name} ended with {_describe(code)}; restarting it in {wait:g} s")
        if self._deaths == DEATHS_UNTIL_ALARM:
            log = self.process.command.log
            report(
                f"{self.part.name} has now ended {self._deaths} times in a row. The end of {log}:\n"
                f"{self.process.log_tail()}\n"
                "It is tried again and again with growing pauses; fix the cause above, or stop with Ctrl-C."
            )


class Supervisor:
    """Runs parts until it is asked to stop.

    Use it from one thread only, the main one: the kernel ends a child when the *thread* that started it ends.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._supervised: list[Supervised] = []
        self._stop_requests = 0

    def request_stop(self) -> None:
        """Ask for the end; safe in a signal handler. A second request cuts the grace short."""
        self._stop_requests += 1

    @property
    def stopping(self) -> bool:
        return self._stop_requests > 0

    def start(self, parts: Sequence[Part]) -> None:
        """Start parts side by side and wait until each is ready.

        Raises:
            StackError: one ended or was not ready in time; carries the end of its log.
            StopRequestedError: a stop was asked for meanwhile.
        """
        fresh = [Supervised(part) for part in parts]
        self._supervised += fresh
        for supervised in fresh:
            self._await_ready(supervised)

    def watch(self, tick: Callable[[], None], interval: float = 0.2) -> None:
        """Restart what dies, calling ``tick`` at every round, until a stop is requested."""
        while not self.stopping:
            for supervised in self._supervised:
                supervised.check(self._report)
            tick()
            time.sleep(interval)

    def stop(self) -> None:
        """Stop the stages from the highest to the lowest; within a stage side by side."""
        for stage in sorted({supervised.part.stage for supervised in self._supervised}, reverse=True):
            self._stop_stage([s for s in self._supervised if s.part.stage == stage])

    def status(self) -> list[PartStatus]:
        return [supervised.status() for supervised in self._supervised]

    def pids(self) -> dict[str, int]:
        return {s.name: s.pid for s in self.status() if s.pid is not None}

    def _await_ready(self, supervised: Supervised) -> None:
        part, process = supervised.part, supervised.process
        deadline = time.monotonic() + part.ready_seconds
        while not part.ready(process):
            if self.stopping:
                raise StopRequestedError
            code = process.exit_code
            late = time.monotonic() > deadline
            if code is not None or late:
                what = f"ended with {_describe(code)}" if code is not None else "was not ready in time"
                raise StackError(
                    f"{part.name} {what}. The end of its log:\n{process.log_tail()}",
                    f"The whole log is {process.command.log}",
                )
            time.sleep(0.05)
        supervised.phase = Phase.READY

    def _stop_stage(self, stage: Sequence[Supervised]) -> None:
        for supervised in stage:
            supervised.process.signal(supervised.process.command.stop_signal)
        for supervised in stage:
            process = supervised.process
            deadline = time.monotonic() + process.command.grace_seconds
            while process.exit_code is None and time.monotonic() < deadline and self._stop_requests < 2:
                process.wait(0.05)
            if process.exit_code is None:
                self._report(f"{supervised.part.name} did not end in time; ending it now")
                # Postgres recovers from its log after SIGQUIT; the others have nothing to lose.
                process.signal(signal.SIGQUIT if supervised.part.name == "postgres" else signal.SIGKILL)
            process.stop(grace=5.0)
            supervised.phase = Phase.STOPPED


def _describe(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
