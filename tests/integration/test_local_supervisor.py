"""The supervisor on small programs: restarts, alarms, stopping."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from calotype.local import supervisor as supervising
from calotype.local.errors import StackError
from calotype.local.process import Command
from calotype.local.supervisor import Part, Phase, StopRequestedError, Supervisor

SLEEPS = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
)


@pytest.fixture
def part(tmp_path: Path) -> Callable[..., Part]:
    def make(code: str, *, name: str = "part", stage: int = 0, grace: float = 5.0, ready_word: str = "") -> Part:
        log = tmp_path / f"{name}.log"
        command = Command(name=name, argv=[sys.executable, "-S", "-c", code], log=log, grace_seconds=grace)
        return Part(
            name=name,
            command=command,
            ready=lambda _: ready_word in (log.read_text() if log.exists() else ""),
            stage=stage,
            ready_seconds=10,
        )

    return make


def test_a_part_that_dies_is_started_again(part: Callable[..., Part]) -> None:
    told: list[str] = []
    supervisor = Supervisor(told.append)
    supervisor.start([part(SLEEPS)])
    first = supervisor.pids()["part"]
    supervisor._supervised[0].process.signal(signal.SIGKILL)

    _watch(supervisor, until=lambda: supervisor.status()[0].restarts == 1 and "back" in told[-1])

    assert supervisor.pids()["part"] != first
    assert "part ended with signal SIGKILL; restarting" in told[0]
    supervisor.stop()


def test_a_part_that_dies_again_and_again_raises_an_alarm_with_its_log(
    part: Callable[..., Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervising, "FIRST_BACKOFF_SECONDS", 0.01)
    told: list[str] = []
    supervisor = Supervisor(told.append)
    supervisor.start([part("print('no luck', flush=True); import time; time.sleep(0.2)", ready_word="no luck")])

    _watch(supervisor, until=lambda: any("3 times in a row" in text for text in told))

    alarm = next(text for text in told if "3 times in a row" in text)
    assert "no luck" in alarm
    supervisor.stop()


def test_a_part_that_ends_at_once_fails_the_start_with_the_end_of_its_log(
    part: Callable[..., Part],
) -> None:
    supervisor = Supervisor(lambda text: None)

    with pytest.raises(StackError, match=r"(?s)ended with exit code 3.*cannot bind"):
        supervisor.start([part("print('cannot bind', flush=True); raise SystemExit(3)", ready_word="never")])

    supervisor.stop()
    assert supervisor.pids() == {}


def test_a_stop_request_ends_a_start_that_is_under_way(part: Callable[..., Part]) -> None:
    supervisor = Supervisor(lambda text: None)
    supervisor.request_stop()

    with pytest.raises(StopRequestedError):
        supervisor.start([part(SLEEPS, ready_word="never")])

    supervisor.stop()
    assert supervisor.pids() == {}


def test_later_stages_stop_before_earlier_ones(part: Callable[..., Part], tmp_path: Path) -> None:
    order = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    with open({order!r}, 'a') as out: out.write('{name}\\n')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('on', flush=True); time.sleep(600)"
    )
    supervisor = Supervisor(lambda text: None)
    for stage, name in enumerate(("service", "api", "worker")):
        script = code.format(order=str(order), name=name)
        supervisor.start([part(script, name=name, stage=stage, ready_word="on")])

    supervisor.stop()

    assert order.read_text().split() == ["worker", "api", "service"]
    assert {status.phase for status in supervisor.status()} == {Phase.STOPPED}


def test_a_part_that_ignores_the_stop_signal_is_killed_after_its_grace(part: Callable[..., Part]) -> None:
    told: list[str] = []
    supervisor = Supervisor(told.append)
    supervisor.start([part(STUBBORN, grace=0.3, ready_word="on")])

    supervisor.stop()

    assert supervisor.pids() == {}
    assert told == ["part did not end in time; ending it now"]


def test_a_second_stop_request_cuts_the_grace_short(part: Callable[..., Part]) -> None:
    supervisor = Supervisor(lambda text: None)
    supervisor.start([part(STUBBORN, grace=60.0, ready_word="on")])
    supervisor.request_stop()
    supervisor.request_stop()
    started = time.monotonic()

    supervisor.stop()

    assert time.monotonic() - started < 10


def _watch(supervisor: Supervisor, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    supervisor.watch(partial(_stop_when, supervisor, until, deadline), interval=0.02)
    assert until(), "not reached in time"


def _stop_when(supervisor: Supervisor, until: Callable[[], bool], deadline: float) -> None:
    if until() or time.monotonic() > deadline:
        supervisor.request_stop()
