"""What a handler sees: reasons to stop, in their order, and progress that costs nothing."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, cast

import pytest

from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.context import CancelRequested, Interrupted, JobContext, LeaseLost, ShuttingDown
from worker.signals import Signals


class Job:
    id = "the job"
    queue = "diffusion.train"
    epoch = 1
    timeout_seconds = 5.0


@pytest.fixture
def ctx(tmp_path: Path) -> JobContext:
    nothing = cast(Any, None)
    return JobContext(
        job=cast(Any, Job()),
        spec=nothing,
        settings=Settings(),
        store=nothing,
        models=nothing,
        workdir=tmp_path,
        engine=nothing,
        signals=Signals(shutdown=threading.Event()),
    )


def test_an_undisturbed_job_goes_on_and_shows_life(ctx: JobContext) -> None:
    ctx.signals.last_sign = 0.0
    ctx.check()
    assert time.monotonic() - ctx.signals.last_sign < 1.0


def test_a_lost_lease_outranks_a_cancel_and_a_cancel_a_shutdown(ctx: JobContext) -> None:
    ctx.signals.shutdown.set()
    with pytest.raises(ShuttingDown):
        ctx.check()
    ctx.signals.cancel.set()
    with pytest.raises(CancelRequested):
        ctx.check()
    ctx.signals.lease_lost.set()
    with pytest.raises(LeaseLost):
        ctx.check()


def test_an_interruption_is_not_swallowed_by_a_guard_around_a_step(ctx: JobContext) -> None:
    ctx.signals.cancel.set()
    with pytest.raises(Interrupted):
        try:
            ctx.check()
        except Exception:  # noqa: BLE001 - the guard in question
            pytest.fail("swallowed")


def test_a_job_past_its_timeout_fails_for_good(ctx: JobContext) -> None:
    ctx.signals.deadline = time.monotonic() - 0.1
    with pytest.raises(JobFailed) as failed:
        ctx.check()
    assert (failed.value.code, failed.value.retryable) == ("timeout", False)


def test_progress_expects_the_rest_to_go_as_the_stage_went_so_far(
    ctx: JobContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    ctx.progress(0, 40, "warming up")
    now = 107.0
    ctx.progress(10, 40, "training")
    assert ctx.signals.unwritten is not None
    assert ctx.signals.unwritten.eta_seconds is None
    now = 117.0
    ctx.progress(20, 40, "training")
    progress = ctx.signals.unwritten
    assert (progress.fraction, progress.step, progress.total, progress.stage) == (0.5, 20, 40, "training")
    assert progress.eta_seconds == pytest.approx(20.0)


def test_progress_of_nothing_is_no_division_by_zero(ctx: JobContext) -> None:
    ctx.progress(0, 0, "loading")
    assert ctx.signals.unwritten is not None
    assert ctx.signals.unwritten.fraction == 0.0


def test_what_a_job_says_and_measures_waits_for_its_events_in_order(
    ctx: JobContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        ctx.log("resumed at step 3")
    ctx.metrics({"step": 4, "loss": float("nan")})
    assert caplog.messages == ["resumed at step 3"]
    with ctx.signals.said.taken(wait=True) as lines:
        assert lines == [("log", {"message": "resumed at step 3"}), ("metrics", {"step": 4, "loss": None})]
