"""A batch as its handler sees it: who leaves, who stays, and whose fault is whose."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.batch import Batch, Finishing, NobodyLeft, one_by_one
from worker.context import CancelRequested, HandlerResult, JobContext, LeaseLost, ShuttingDown
from worker.members import Member
from worker.signals import Signals

RESULT = HandlerResult([], {})


class Made:
    """A batch of three, and what was handed over."""

    def __init__(self, folder: Path) -> None:
        self.shutdown = threading.Event()
        self.members = [self._member(number, folder) for number in range(3)]
        self.outcomes: dict[int, Finishing | BaseException] = {}
        self.batch = Batch(self.members, self._hand_over, Settings())
        self.first, self.second, self.third = self.batch.contexts

    def _member(self, number: int, folder: Path) -> Member:
        nothing: Any = None
        job: Any = SimpleNamespace(id=number, queue="diffusion.generate", epoch=1, timeout_seconds=1.0)
        member = Member(job=job, signals=Signals(shutdown=self.shutdown))
        member.context = JobContext(
            job=job,
            spec=nothing,
            settings=Settings(),
            store=nothing,
            models=nothing,
            workdir=folder,
            engine=nothing,
            signals=member.signals,
        )
        return member

    def _hand_over(self, member: Member, outcome: Finishing | BaseException) -> None:
        member.open = False
        self.outcomes[int(str(member.job.id))] = outcome


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def test_a_check_lets_those_go_that_must_stop_and_keeps_the_others(made: Made) -> None:
    made.first.signals.cancel.set()
    made.third.signals.lease_lost.set()
    made.batch.check()
    assert made.batch.contexts == [made.second]
    assert isinstance(made.outcomes[0], CancelRequested)
    assert isinstance(made.outcomes[2], LeaseLost)


def test_a_check_says_when_nobody_is_left(made: Made) -> None:
    made.shutdown.set()
    with pytest.raises(NobodyLeft):
        made.batch.check()
    assert all(isinstance(outcome, ShuttingDown) for outcome in made.outcomes.values())
    assert len(made.outcomes) == 3


def test_a_job_past_its_timeout_fails_and_one_that_is_through_has_none_any_more(made: Made) -> None:
    for ctx in (made.first, made.second):
        ctx.signals.deadline = time.monotonic() + 60
    made.batch.finish(made.first, lambda: RESULT)
    assert made.first.signals.deadline is None
    made.second.signals.deadline = 0.0
    made.batch.check()
    failure = made.outcomes[1]
    assert isinstance(failure, JobFailed)
    assert failure.code == "timeout"


def test_what_goes_wrong_for_one_job_is_its_own_affair(made: Made) -> None:
    with made.batch.own(made.second):
        raise KeyError("no such image")
    assert isinstance(made.outcomes[1], KeyError)
    assert made.batch.contexts == [made.first, made.third]


def test_a_lost_device_is_nobodys_own_affair(made: Made) -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"), made.batch.own(made.second):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert made.outcomes == {}


def test_a_job_that_a_check_within_its_own_affairs_let_go_has_one_outcome(made: Made) -> None:
    with made.batch.own(made.first):
        made.first.signals.cancel.set()
        made.batch.check()
        raise OSError("went on regardless")
    assert isinstance(made.outcomes[0], CancelRequested)
    made.shutdown.set()
    with pytest.raises(NobodyLeft), made.batch.own(made.second):
        made.batch.check()
    assert isinstance(made.outcomes[1], ShuttingDown)


def test_a_second_outcome_is_refused(made: Made) -> None:
    made.batch.finish(made.first, lambda: RESULT)
    with pytest.raises(RuntimeError, match="has its outcome already"):
        made.batch.fail(made.first, KeyError())


def test_while_one_runs_alone_its_checks_look_after_the_others(made: Made) -> None:
    made.batch.alone(made.first)
    made.second.signals.cancel.set()
    made.third.signals.last_sign = 0.0
    made.first.check()
    assert made.batch.contexts == [made.first, made.third]
    assert made.third.signals.last_sign > 0.0


def test_a_handler_of_single_jobs_hears_its_own_reason_to_stop(made: Made) -> None:
    heard: list[BaseException] = []

    def handler(ctx: JobContext) -> HandlerResult:
        made.shutdown.set()
        try:
            ctx.check()
        except ShuttingDown as exc:
            heard.append(exc)
            raise
        return RESULT

    one_by_one(handler)(made.batch.alone(made.first))
    assert made.outcomes[0] is heard[0]
    assert isinstance(made.outcomes[1], ShuttingDown)
