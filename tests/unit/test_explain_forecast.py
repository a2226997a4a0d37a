"""When a waiting job will start: the arithmetic, and how often the interval is right."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calotype.explain import forecast
from calotype.explain.forecast import NOTHING, Load, Outlook, Rival, Work, load_of, pour, remaining, start
from calotype.jobs import State
from calotype.scheduling import UNKNOWN_SECONDS, Rate
from calotype.simulation import EXAMPLE, Options, Trace, TraceJob, TraceTenant, TraceWorker, read_trace, simulate
from calotype.simulation.world import World
from tests.simulated_outlook import outlook_of

times = st.floats(0, 1000)
KNOWN = Rate(jobs=100, mean=2.0, variance=0.0)


def exactly(seconds: float, jobs: int = 1) -> Load:
    return Load(jobs=jobs, seconds=seconds, low=seconds, high=seconds)


def outlook(workers: int = 1, **values: Any) -> Outlook:
    return Outlook(**{"workers": [NOTHING] * workers, "vtime": 0.0, "weight": 1.0, **values})


# --- Arithmetic ---


@given(st.lists(times, min_size=1, max_size=8), times)
def test_work_that_is_poured_over_workers_fills_exactly_the_time_that_they_have(free: list[float], work: float) -> None:
    done = pour(free, work)

    assert done >= min(free)
    assert sum(max(0.0, done - at) for at in free) == pytest.approx(work, abs=1e-6)


def test_what_a_rate_of_many_jobs_says_is_taken_within_a_drift_and_less_known_wider() -> None:
    work = Work(jobs=3, work=30.0, squares=300.0)
    others = Rate(jobs=100, mean=1.0, variance=0.0)

    known, few = load_of(work, "generate", KNOWN, others), load_of(work, "generate", replace(KNOWN, jobs=2), others)
    borrowed, unknown = load_of(work, "generate", None, others), load_of(work, "generate", None, None)

    assert (known.seconds, known.high) == (60.0, pytest.approx(60.0 * (1 + forecast.DRIFT)))
    assert few.seconds == 60.0 and few.low < 30.0 < 60.0 < known.high < few.high
    assert borrowed.seconds == 30.0 and borrowed.high > 60.0
    assert unknown.seconds == 3 * UNKNOWN_SECONDS["generate"] and unknown.high > 4 * unknown.seconds


def test_the_spread_of_single_jobs_counts_less_the_more_there_are() -> None:
    wide = Rate(jobs=100, mean=2.0, variance=1.0)
    one = load_of(Work(jobs=1, work=1.0, squares=1.0), "generate", wide, None)
    many = load_of(Work(jobs=100, work=100.0, squares=100.0), "generate", wide, None)

    assert many.most / many.seconds < one.most / one.seconds


def test_of_a_job_that_should_have_ended_as_much_again_may_be_left() -> None:
    assert remaining(exactly(60.0), 20.0).seconds == 40.0
    late = remaining(exactly(60.0), 90.0)
    assert (late.least, late.most) == (0.0, 90.0)


# --- Rules ---


def test_with_nothing_ahead_and_an_idle_worker_it_starts_now() -> None:
    found = start(outlook())
    assert found is not None
    assert (found.earliest, found.latest) == (0.0, forecast.NOTICE_SECONDS)


def test_without_a_worker_or_with_a_limit_of_none_nothing_is_said() -> None:
    assert start(outlook(workers=0)) is None
    assert start(outlook(limit=0)) is None


def test_a_rival_passes_only_for_what_it_is_owed_before_the_turn() -> None:
    own = exactly(100.0, 10)
    crowd = exactly(10_000.0, 1000)

    def latest(*rivals: Rival) -> float:
        found = start(outlook(ahead=own, rivals=rivals))
        assert found is not None and found.latest is not None
        return found.latest - forecast.NOTICE_SECONDS

    # It has as much and a job more; thrice as much by its weight; nothing, for it had more; only what it has.
    assert latest(Rival(vtime=0.0, weight=1.0, waiting=crowd)) == pytest.approx(100 + 100 + 10)
    assert latest(Rival(vtime=0.0, weight=3.0, waiting=crowd)) == pytest.approx(100 + 300 + 10)
    assert latest(Rival(vtime=500.0, weight=1.0, waiting=crowd)) == pytest.approx(100)
    assert latest(Rival(vtime=0.0, weight=3.0, waiting=exactly(20.0, 2))) == pytest.approx(100 + 20)
    assert forecast.jobs_before(outlook(ahead=own, rivals=[Rival(vtime=0.0, weight=3.0, waiting=crowd)])) == 30


def test_what_rivals_asked_for_lately_is_expected_to_go_on_within_their_fair_share() -> None:
    def latest(arriving: float) -> float:
        found = start(outlook(ahead=exactly(100.0, 10), rivals=[Rival(vtime=0.0, weight=1.0, arriving=arriving)]))
        assert found is not None and found.latest is not None
        return found.latest - forecast.NOTICE_SECONDS

    assert latest(0.0) == 100.0
    assert 100.0 < latest(0.2) < 200.0
    assert latest(50.0) == pytest.approx(200.0)


def test_a_limit_holds_a_job_back_however_many_workers_there_are() -> None:
    asked = {"ahead": exactly(100.0, 10), "running": [exactly(40.0)], "limit": 1}
    found = start(outlook(workers=10, **asked))
    assert found is not None and found.latest is not None
    assert found.earliest == pytest.approx(140.0)
    assert found.latest >= 140.0


def test_more_jobs_than_were_counted_leave_the_end_open() -> None:
    found = start(outlook(ahead=replace(exactly(100.0, 10), more=True)))
    assert found is not None
    assert found.earliest == pytest.approx(100.0) and found.latest is None


def test_a_backoff_is_waited_out() -> None:
    found = start(outlook(held_back=50.0))
    assert found is not None and found.latest is not None
    assert found.earliest == 50.0 <= found.latest


@given(st.lists(times, min_size=1, max_size=5), times, times, st.floats(0.1, 10), st.floats(0, 2))
def test_the_earliest_is_never_after_the_latest(
    left: list[float], own: float, theirs: float, weight: float, arriving: float
) -> None:
    rival = Rival(vtime=0.0, weight=weight, waiting=exactly(theirs, 3), arriving=arriving)
    found = start(replace(outlook(ahead=exactly(own, 2), rivals=[rival]), workers=[exactly(one) for one in left]))
    assert found is not None
    assert found.latest is None or 0.0 <= found.earliest <= found.latest


# --- Calibration ---

Said = list[tuple[float, float, float]]


def ask_during(trace: Trace, every: int) -> Said:
    """True wait, earliest and latest of every so manieth job that did not start at once; seconds from its arrival."""
    asked: dict[int, tuple[float, float]] = {}
    arrived = iter(range(len(trace.jobs)))
    following = next(arrived, None)

    def watch(world: World, now: float) -> None:
        nonlocal following
        while following is not None and world.jobs[following].spec.t <= now:
            job = world.jobs[following]
            if job.state is State.QUEUED and following % every == 0:
                found = start(outlook_of(world, job, now))
                assert found is not None
                asked[following] = (found.earliest, math.inf if found.latest is None else found.latest)
            following = next(arrived, None)

    jobs = simulate(trace, Options(), watch).world.jobs
    waits = {number: (jobs[number].started_at or math.inf) - jobs[number].spec.t for number in asked}
    return [(waits[number], *interval) for number, interval in asked.items()]


def share_within(said: Said) -> float:
    # Half a second: a job that is taken at once may have been asked about a moment before.
    return sum(earliest - 0.5 <= wait <= latest for wait, earliest, latest in said) / len(said)


def busy_trace(seed: int, load: float) -> Trace:
    """Six hours of three workers, four tenants of different weights, two models, now and then a training."""
    draw = random.Random(seed)
    tenants = [TraceTenant(name=name, weight=weight) for name, weight in zip("abcd", (1.0, 2.0, 1.0, 0.5), strict=True)]
    queues = ["diffusion.generate", "diffusion.train"]
    workers = [TraceWorker(name=f"w{n}", queues=queues, load_seconds=8.0, memory=2) for n in range(3)]
    jobs, t = [], 0.0
    while t < 6 * 3600.0:
        t += draw.expovariate(load * 3 / 14.0)
        # They come in bursts, as people work.
        tenant, count = draw.choice("abcd"), draw.choice((1, 1, 1, 4, 12))
        t += draw.expovariate(load * 3 / 14.0) * (count - 1)
        for _ in range(count):
            model = draw.choice(("x", "x", "y"))
            if draw.random() < 0.01:
                work, kind = draw.uniform(100, 400), {"queue": "diffusion.train"}
            else:
                work, kind = draw.uniform(4, 20), {"queue": "diffusion.generate", "batch_limit": 4}
            seconds = work * draw.uniform(0.8, 1.2) * (1.0 if model == "x" else 1.5)
            jobs.append(
                TraceJob(
                    t=t,
                    tenant=tenant,
                    model=model,
                    work=work,
                    seconds=seconds,
                    priority=draw.choice((4, 5, 5, 6)),
                    **kind,
                )
            )
    return Trace(tenants=tenants, workers=workers, jobs=jobs)


@pytest.mark.parametrize(("seed", "load"), [(1, 0.8), (2, 1.0), (3, 1.3)])
def test_on_a_busy_mixed_trace_nine_of_ten_jobs_start_within_their_interval(seed: int, load: float) -> None:
    said = ask_during(busy_trace(seed, load), every=7)

    assert len(said) > 100
    assert share_within(said) >= 0.9
    # Not by saying little: where the wait is long the interval is of its order.
    assert median((latest - earliest) / wait for wait, earliest, latest in said if wait > 60.0) < 6.0


def test_on_the_shipped_trace_nine_of_ten_jobs_start_within_their_interval() -> None:
    said = ask_during(read_trace(EXAMPLE), every=13)

    assert len(said) > 100
    assert share_within(said) >= 0.9
