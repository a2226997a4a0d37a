"""Watching over a worker process: what counts as hanging."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from calotype.settings import Settings
from worker.exit import ExitCode
from worker.members import Member
from worker.signals import Signals
from worker.supervisor import Supervisor


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[ExitCode]:
    """The codes with which the process would have been ended."""
    codes: list[ExitCode] = []
    monkeypatch.setattr("worker.supervisor.leave", lambda code, reason: codes.append(code))
    return codes


def _supervisor(drain: Any, executor: Any) -> Supervisor:
    nothing: Any = None
    supervisor = Supervisor(
        engine=nothing,
        settings=Settings(),
        drain=drain,
        executor=executor,
        presence=SimpleNamespace(alive=True),  # type: ignore[arg-type]
        shutdown=threading.Event(),
        prepare=lambda: None,
        on_ready=lambda: None,
    )
    supervisor.ready.set()
    return supervisor


def test_a_loop_that_does_not_go_round_is_ended(left: list[ExitCode]) -> None:
    drain = SimpleNamespace(last_turn=time.monotonic() - 7200)
    _supervisor(drain, SimpleNamespace(running=()))._round()
    assert left == [ExitCode.BROKEN]


def test_a_loop_whose_long_job_has_just_ended_is_not_taken_for_one_that_hangs(left: list[ExitCode]) -> None:
    job: Any = None
    drain = SimpleNamespace(last_turn=time.monotonic() - 7200)
    executor = SimpleNamespace(running=(Member(job=job, signals=Signals(shutdown=threading.Event())),))
    supervisor = _supervisor(drain, executor)
    supervisor._round()
    # The moment between the end of a job and the loop's next turn.
    executor.running = ()
    supervisor._round()
    assert left == []
