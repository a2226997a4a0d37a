"""What must hold in every simulation, and so for the rules that it is driven by."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calotype.errors import Invalid
from calotype.jobs import State
from calotype.scheduling import PRIORITY_STEP, Rate
from calotype.simulation import (
    EXAMPLE,
    FairShare,
    Fifo,
    Options,
    Result,
    Trace,
    TraceJob,
    TraceOutage,
    TraceTenant,
    TraceWorker,
    example,
    parse_trace,
    read_trace,
    report,
    simulate,
    with_workers,
)
from calotype.simulation.fairness import max_min_fair
from calotype.simulation.policies import by_turn
from calotype.simulation.world import World

GENERATE, TRAIN = "diffusion.generate", "diffusion.train"
#: Estimates are exact from the first job on.
KNOWN = {(queue, ""): Rate(jobs=100, mean=1.0, variance=0.0) for queue in (GENERATE, TRAIN)}
ONE_BY_ONE = FairShare(most_units=1)

# The machine may be busy; what is asked of an example is not its speed.
thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TENANTS = ("a", "b", "c")
names = st.sampled_from(TENANTS)
seconds = st.integers(1, 40).map(float)
moments = st.integers(0, 200).map(float)
jobs = st.builds(
    TraceJob,
    t=moments,
    tenant=names,
    queue=st.sampled_from((GENERATE, TRAIN)),
    seconds=seconds,
    model=st.sampled_from(("", "x", "y")),
    units=st.integers(1, 4),
    batch_limit=st.sampled_from((1, 4, 8)),
    priority=st.integers(0, 9),
    max_attempts=st.integers(1, 3),
    failures=st.integers(0, 2),
    deadline_seconds=st.none() | st.integers(1, 100).map(float),
)
tenants = st.tuples(
    *(
        st.builds(TraceTenant, name=st.just(name), weight=st.sampled_from((0.5, 1.0, 3.0)), max_running=limit)
        for name, limit in zip(TENANTS, (st.none(), st.integers(1, 3), st.none() | st.integers(1, 2)), strict=True)
    )
)
workers = st.lists(
    st.builds(
        TraceWorker,
        name=st.uuids().map(str),
        queues=st.sampled_from(([GENERATE], [TRAIN], [GENERATE, TRAIN])),
        pool=st.sampled_from(("one", "two")),
        speed=st.sampled_from((0.5, 1.0, 2.0)),
        load_seconds=st.sampled_from((0.0, 7.0)),
        memory=st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda worker: worker.name,
)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    there = [*draw(workers), TraceWorker(name="all", queues=[GENERATE, TRAIN])]
    outages = draw(
        st.lists(
            st.builds(
                TraceOutage, t=moments, worker=st.sampled_from([worker.name for worker in there]), seconds=moments
            ),
            max_size=2,
        )
    )
    asked = sorted(draw(st.lists(jobs, max_size=40)), key=lambda job: job.t)
    return Trace(tenants=draw(tenants), workers=there, jobs=asked, outages=outages)


def job(t: float, tenant: str, seconds: float = 10.0, **more: Any) -> TraceJob:
    return TraceJob(t=t, tenant=tenant, seconds=seconds, **{"queue": GENERATE, **more})


def trace(jobs: list[TraceJob], count: int = 1, tenants: list[TraceTenant] | None = None, **worker: Any) -> Trace:
    there = tenants or [TraceTenant(name=name) for name in sorted({one.tenant for one in jobs})]
    queues = [GENERATE, TRAIN]
    made = [TraceWorker(name=f"w{number}", **{"queues": queues, **worker}) for number in range(count)]
    return Trace(tenants=there, workers=made, jobs=sorted(jobs, key=lambda one: one.t))


def starts(result: Result, tenant: str) -> list[float]:
    return [one.started_at for one in result.world.jobs if one.spec.tenant == tenant and one.started_at is not None]


# --- What holds for any trace ---


@thorough
@given(traces())
def test_every_job_ends_once_and_nothing_is_left_running(given: Trace) -> None:
    ended: Counter[int] = Counter()
    alive: dict[int, bool] = {}

    def watch(world: World, _now: float) -> None:
        for one in world.jobs:
            if one.state.terminal and not alive.get(one.number):
                ended[one.number] += 1
            alive[one.number] = one.state.terminal

    result = simulate(given, watch=watch)

    assert all(one.state.terminal for one in result.world.jobs)
    assert all(ended[one.number] == 1 for one in result.world.jobs)
    assert all(device.call is None for device in result.world.devices)
    assert all(share.running == 0 for shares in result.world.shares.values() for share in shares.values())
    for one in result.world.jobs:
        assert one.attempt <= one.spec.max_attempts
        assert (one.state is State.EXPIRED) == (one.started_at is None)


@thorough
@given(traces())
def test_virtual_time_comes_to_what_was_measured(given: Trace) -> None:
    result = simulate(given)
    for pool, shares in result.world.shares.items():
        for name, share in shares.items():
            assert (share.settled, share.devices) == (share.vtime or 0.0, 0.0)
            used = sum(one.gpu_seconds for one in result.world.jobs if one.spec.tenant == name and one.pool == pool)
            several = {one.attempt > 1 for one in result.world.jobs if one.spec.tenant == name}
            if True not in several:
                # A tenant that came back was raised, never lowered.
                assert (share.vtime or 0.0) >= used / result.world.tenants[name].weight - 1e-6


@thorough
@given(traces(), st.sampled_from((FairShare(), ONE_BY_ONE, Fifo())))
def test_running_limits_are_never_exceeded(given: Trace, policy: Any) -> None:
    def watch(world: World, _now: float) -> None:
        held = Counter(one.spec.tenant for one in world.jobs if one.state is State.RUNNING)
        for name, tenant in world.tenants.items():
            assert tenant.max_running is None or held[name] <= tenant.max_running
            assert held[name] == world.running[name]

    simulate(given, Options(policy=policy), watch)


@thorough
@given(traces())
def test_no_worker_is_idle_while_there_is_something_that_it_may_run(given: Trace) -> None:
    def watch(world: World, _now: float) -> None:
        for device in world.devices:
            if device.call is None and not device.down:
                assert by_turn(world, device) == []

    simulate(given, watch=watch)


@thorough
@given(traces())
def test_batches_hold_equal_jobs_within_the_limit_and_share_the_device_by_units(given: Trace) -> None:
    def watch(world: World, _now: float) -> None:
        for device in world.devices:
            members = device.call.jobs if device.call is not None else ()
            if len(members) > 1:
                assert len({one.batch_key for one in members}) == 1
                assert sum(one.spec.units for one in members) <= members[0].spec.batch_limit
                assert all(one.attempt == 1 for one in members)
                assert sum(one.batch_share for one in members) == pytest.approx(1.0)

    simulate(given, watch=watch)


@settings(thorough, max_examples=20)
@given(traces())
def test_the_same_trace_always_gives_the_same_report(given: Trace) -> None:
    assert report(simulate(given)) == report(simulate(given))


# --- Fairness ---


@thorough
@given(
    st.lists(st.tuples(st.sampled_from(TENANTS), seconds), min_size=6, max_size=80),
    st.lists(st.sampled_from((1.0, 2.0, 5.0)), min_size=3, max_size=3),
    st.integers(1, 3),
    st.booleans(),
)
def test_what_waiting_tenants_got_over_their_weights_differs_by_little_at_any_moment(
    asked: list[tuple[str, float]], weights: list[float], count: int, exact: bool
) -> None:
    """The bound of start-time fair queueing (Goyal, Vin and Cheng 1996, Theorem 1), with a job in flight a device.

    Who is not served first begins where the first one is by then: a job more. A wrong estimate counts as one, too.
    """
    given = trace(
        [job(0.0, name, long) for name, long in asked],
        count,
        [TraceTenant(name=name, weight=weight) for name, weight in zip(TENANTS, weights, strict=True)],
    )
    longest = max([long for _, long in asked] + ([] if exact else [5.0]))

    def watch(world: World, now: float) -> None:
        got = {
            name: sum(
                (one.finished_at or now) - one.started_at
                for one in world.jobs
                if one.spec.tenant == name and one.started_at is not None
            )
            / tenant.weight
            for name, tenant in world.tenants.items()
        }
        still = [name for name in world.tenants if world.waiting.of(name, [GENERATE])]
        for one, other in combinations(still, 2):
            slack = longest / world.tenants[one].weight + longest / world.tenants[other].weight
            assert abs(got[one] - got[other]) <= (count + 1 + (0 if exact else count)) * slack + 1e-6

    simulate(given, Options(rates=KNOWN if exact else {}), watch)


def test_weights_of_three_to_one_share_the_device_three_to_one() -> None:
    both = [job(0.0, name, 7.0) for _ in range(200) for name in ("heavy", "light")]
    given = trace(both, 2, [TraceTenant(name="heavy", weight=3.0), TraceTenant(name="light")])
    got: dict[str, float] = {}

    def watch(world: World, _now: float) -> None:
        if world.waiting.of("heavy", [GENERATE]):
            got.update({name: sum(one.gpu_seconds for one in world.jobs if one.spec.tenant == name) for name in TWO})

    simulate(given, watch=watch)

    assert got["heavy"] / got["light"] == pytest.approx(3.0, rel=0.05)


TWO = ("heavy", "light")


@thorough
@given(st.integers(1, 4), st.integers(0, 300), st.integers(1, 30))
def test_a_lone_job_beside_a_thousand_starts_within_the_length_of_one_job(count: int, t: int, long: int) -> None:
    crowd = [job(0.0, "crowd", float(long)) for _ in range(1000)]
    result = simulate(trace([*crowd, job(float(t), "lone")], count))

    (started,) = starts(result, "lone")

    assert started - t <= long


def got_until(given: Trace, end: float) -> tuple[dict[str, float], dict[str, float]]:
    """Device-seconds of tenants that all have more to do, until then, and what they were given in virtual time."""
    got: dict[str, float] = {}
    at_end: dict[str, float] = {}

    def watch(world: World, now: float) -> None:
        if now <= end:
            assert all(world.waiting.of(name, [GENERATE]) for name in world.tenants)
            for name in world.tenants:
                mine = [one for one in world.jobs if one.spec.tenant == name and one.started_at is not None]
                got[name] = sum((now if one.finished_at is None else one.finished_at) - one.claimed_at for one in mine)
            at_end.update({name: world.standing("default", name).given for name in world.tenants})

    simulate(given, watch=watch)
    return got, at_end


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("slow", [5.0, 20.0])
def test_a_running_limit_of_each_changes_nothing_in_how_one_device_is_shared(weight: float, slow: float) -> None:
    limited = [TraceTenant(name="quick", weight=weight, max_running=1), TraceTenant(name="slow", max_running=1)]
    asked = [*[job(0.0, "quick", 1.0) for _ in range(450)], *[job(0.0, "slow", slow) for _ in range(100)]]

    got, _ = got_until(trace(asked, 1, limited), 400.0)

    assert got["quick"] == pytest.approx(400.0 * weight / (weight + 1.0), abs=slow + 1.0)


def test_who_is_at_its_limit_beside_others_on_several_devices_saves_nothing_up() -> None:
    there = [TraceTenant(name="limited", weight=3.0, max_running=1), TraceTenant(name="one"), TraceTenant(name="other")]
    asked = [job(0.0, name, 5.0) for name in ("limited", "one", "other") for _ in range(200)]

    got, given = got_until(trace(asked, 3, there), 400.0)

    assert got == pytest.approx({"limited": 400.0, "one": 400.0, "other": 400.0}, abs=10.0)
    # Of its weight it could make no use.
    assert given["limited"] == pytest.approx(given["one"], abs=10.0)


@pytest.mark.parametrize(
    ("seconds", "at", "left"), [(20.0, 10800.0, 10800.0 + 600.0), (5.0, 10795.0, 10790.0 + 5.0)], ids=["long", "short"]
)
def test_what_an_overdue_job_adds_to_the_next_claim_goes_with_it_whichever_ends_first(
    seconds: float, at: float, left: float
) -> None:
    training = job(0.0, "a", 10800.0, queue=TRAIN, work=600.0)
    given = trace([training, job(10790.0, "a", seconds, work=600.0)], 2)
    seen: dict[float, float] = {}

    simulate(
        given, Options(rates=KNOWN), lambda world, now: seen.update({now: world.shares["default"]["a"].vtime or 0})
    )

    # Both are charged with 600 s.
    assert (seen[10790.0], seen[at]) == (10790.0 + 600.0, left)
    assert seen[max(seen)] == 10800.0 + seconds


def test_a_tenant_cannot_live_on_what_it_did_not_use() -> None:
    early = [job(10.0 * number, "steady") for number in range(200)]
    late = [job(1000.0, "late") for _ in range(100)]

    result = simulate(trace([*early, *late]))

    taken = sorted(
        (*((at, "steady") for at in starts(result, "steady")), *((at, "late") for at in starts(result, "late")))
    )
    among = [name for at, name in taken if 1000.0 <= at < 1400.0]
    # Both have just come: who is first is one job ahead.
    assert abs(among.count("steady") - among.count("late")) <= 2


def test_who_is_away_for_a_while_is_not_overtaken_by_newcomers_that_used_nothing() -> None:
    """A pause of the only tenant must not turn the pool's time back for those who come meanwhile."""
    long_history = [job(10.0 * number, "old") for number in range(100)]
    burst = [job(1200.0, "new") for _ in range(50)]
    back = [job(1205.0, "old")]

    result = simulate(trace([*long_history, *burst, *back]))

    assert starts(result, "old")[-1] - 1205.0 <= 10.0


def waits(result: Result, tenant: str, since: float = 0.0) -> list[float]:
    mine = [one for one in result.world.jobs if one.spec.tenant == tenant and one.spec.t >= since]
    return [one.started_at - one.spec.t for one in mine if one.started_at is not None]


def test_one_long_training_that_began_long_ago_lets_no_newcomer_begin_in_the_past() -> None:
    history = [job(10.0 * number, "shop") for number in range(200)]
    training = job(500.0, "research", 7200.0, queue=TRAIN)
    # It comes while only the training runs, whose tenant had little before.
    burst = [job(2100.0, "bulk") for _ in range(400)]
    back = [job(2105.0 + 60.0 * number, "shop") for number in range(20)]

    result = simulate(trace([*history, training, *burst, *back], 2))

    assert len(waits(result, "shop", 2100.0)) == 20
    assert max(waits(result, "shop", 2100.0)) <= 10.0


@pytest.mark.parametrize("queues", [[TRAIN], [TRAIN, GENERATE]], ids=["apart", "both"])
def test_who_waits_sets_the_clock_though_others_had_more_on_workers_of_their_own(queues: list[str]) -> None:
    crowd = [job(5.0 * number, "crowd", 20.0) for number in range(2000)]
    trains = [job(1.0, "trains", 600.0, queue=TRAIN) for _ in range(25)]
    new = job(5000.0, "new", 60.0, queue=TRAIN)
    six = [TraceWorker(name=f"g{number}", queues=[GENERATE]) for number in range(6)]
    given = trace([*crowd, *trains, new])

    result = simulate(replace(given, workers=[*six, TraceWorker(name="t", queues=queues)]))

    assert max(waits(result, "new")) <= 600.0


def test_while_nobody_waits_a_newcomer_is_not_measured_by_who_has_workers_of_its_own() -> None:
    crowd = [job(5.0 * number, "crowd", 20.0) for number in range(2000)]
    trains = [job(1.0, "trains", 7200.0, queue=TRAIN), *[job(5050.0, "trains", 600.0, queue=TRAIN) for _ in range(10)]]
    new = [job(5000.0, "new", 60.0, queue=TRAIN) for _ in range(10)]
    six = [TraceWorker(name=f"g{number}", queues=[GENERATE]) for number in range(6)]
    two = [TraceWorker(name=f"t{number}", queues=[TRAIN]) for number in range(2)]

    result = simulate(replace(trace([*crowd, *trains, *new]), workers=[*six, *two]))

    # Its own jobs, and one training.
    assert max(waits(result, "new")) <= 10 * 60.0 + 600.0


@pytest.mark.parametrize("expected", [None, 7200.0], ids=["too short an estimate", "the right one"])
def test_one_long_training_saves_nothing_up_for_a_burst_and_is_charged_once(expected: float | None) -> None:
    crowd = [job(20.0 * number, "shop", 100.0) for number in range(600)]
    training = job(0.0, "research", 7200.0, queue=TRAIN, work=expected or 600.0)
    burst = [job(7000.0, "research", 100.0) for _ in range(200)]

    result = simulate(trace([*crowd, training, *burst], 7), Options(rates=KNOWN))

    counts = [sum(7400.0 <= at < 8400.0 for at in starts(result, name)) for name in ("shop", "research")]
    # Both have more to do than there are devices for; what was charged for the training has no part in it.
    assert min(counts) > 30 and abs(counts[0] - counts[1]) <= 7


@thorough
@given(st.lists(st.tuples(moments, st.integers(0, 9), seconds), min_size=2, max_size=40))
def test_within_a_tenant_the_order_is_priority_with_aging(asked: list[tuple[float, int, float]]) -> None:
    given = trace([job(t, "a", long, priority=priority) for t, priority, long in asked])
    result = simulate(given)
    for one, other in combinations(result.world.jobs, 2):
        assert one.started_at is not None and other.started_at is not None
        if max(one.spec.t, other.spec.t) < min(one.started_at, other.started_at):
            # Both waited when the first of them was taken.
            sooner = one if one.started_at < other.started_at else other
            later = other if sooner is one else one
            ahead = (sooner.spec.priority - later.spec.priority) * PRIORITY_STEP.total_seconds()
            assert sooner.spec.t - ahead <= later.spec.t


def test_one_step_of_priority_is_worth_a_minute_of_waiting() -> None:
    blocker = job(0.0, "a", 500.0)
    for gap, first in ((59.0, "high"), (61.0, "low")):
        low, high = job(1.0, "a", priority=5), job(1.0 + gap, "a", priority=6)
        result = simulate(trace([blocker, low, high]))
        (_, at_low, at_high) = (one.started_at for one in result.world.jobs)
        assert at_low is not None and at_high is not None
        assert ("high" if at_high < at_low else "low") == first


# --- Affinity and batches ---


def test_affinity_saves_loads_and_its_bounds_keep_the_others_from_starving() -> None:
    asked = [job(0.0, name, 4.0, model=model) for _ in range(60) for name, model in (("a", "x"), ("b", "y"))]
    given = trace(asked, 1, load_seconds=20.0)

    without = simulate(given, Options(affinity_streak=0))
    within = simulate(given, Options(affinity_streak=8, affinity_seconds=30.0))

    assert within.world.devices[0].loads < without.world.devices[0].loads / 2
    assert within.makespan < without.makespan
    gaps = [later - sooner for sooner, later in zip(starts(within, "b"), starts(within, "b")[1:], strict=False)]
    # What one took out of turn the other gets back, and may then take as much: each time the seconds that it may last,
    # a load, the job whose turn it was and the job in hand.
    assert max(gaps) <= 2 * (30.0 + 20.0 + 4.0 + 4.0)


def test_jobs_of_different_tenants_share_a_call_and_each_pays_its_part() -> None:
    asked = [job(0.0, "a", batch_limit=4, units=3), job(0.0, "b", batch_limit=4)]
    result = simulate(trace(asked, batch_cost=0.5))

    assert result.batches == {2: 1}
    assert [one.gpu_seconds for one in result.world.jobs] == pytest.approx([11.25, 3.75])


# --- Faults ---


def test_a_lost_workers_job_is_taken_back_after_its_lease_and_runs_elsewhere() -> None:
    given = trace([job(0.0, "a", 100.0)], 2)
    lost = Trace(
        tenants=given.tenants,
        workers=given.workers,
        jobs=given.jobs,
        outages=[TraceOutage(t=30.0, worker="w0", seconds=10.0)],
    )

    result = simulate(lost, Options(lease_seconds=60.0))

    (one,) = result.world.jobs
    assert (one.state, one.attempt, one.finished_at) == (State.SUCCEEDED, 2, 190.0)
    assert one.gpu_seconds == 190.0


def test_a_job_that_fails_is_tried_again_after_a_backoff_until_no_attempt_remains() -> None:
    once, always = job(0.0, "a", failures=1), job(0.0, "a", failures=9, max_attempts=2)
    result = simulate(trace([once, always]))

    assert [(one.state, one.attempt) for one in result.world.jobs] == [(State.SUCCEEDED, 2), (State.FAILED, 2)]


# --- Traces ---


def test_the_shipped_trace_is_what_its_recipe_makes() -> None:
    assert EXAMPLE.read_text(encoding="utf-8") == example.text()


def test_on_the_shipped_trace_fair_share_keeps_customers_from_waiting_behind_a_bulk_order() -> None:
    given = read_trace(EXAMPLE)
    fair, fifo = (report(simulate(given, Options(policy=policy))) for policy in (FairShare(), Fifo()))

    assert len(given.jobs) > 2_000
    assert fair["jobs"] == {"submitted": len(given.jobs), "succeeded": len(given.jobs)}
    assert fifo["jobs"]["expired"] > 0
    assert fair["waits"]["by_tenant"]["shop"]["max"] < fifo["waits"]["by_tenant"]["shop"]["max"] / 4
    assert fair["fairness"]["default"]["jain_index"] > 2 * fifo["fairness"]["default"]["jain_index"]
    assert fair["devices"]["gpu_seconds"] < fifo["devices"]["gpu_seconds"]


def test_more_workers_than_the_trace_has_are_made_like_its_own() -> None:
    given = read_trace(EXAMPLE)

    assert [worker.name for worker in with_workers(given, 3).workers] == ["gpu-0", "gpu-1", "gpu-0#2"]
    assert with_workers(given, 1).outages == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Line 2 of the trace is not JSON"),
        ('{"type": "planet"}', "Line 2 of the trace: type: "),
        (
            '{"type": "job", "t": -1, "tenant": "a", "queue": "diffusion.generate", "seconds": 1}',
            "Line 2 of the trace: t: ",
        ),
        ('{"type": "job", "t": 0, "tenant": "b", "queue": "diffusion.generate", "seconds": 1}', "no tenant 'b'"),
        ('{"type": "outage", "t": 0, "worker": "b", "seconds": 1}', "no worker 'b'"),
        ('{"type": "tenant", "name": "a"}', "the same name"),
        ("", "no worker"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_line(line: str, said: str) -> None:
    worker = '{"type": "worker", "name": "w", "queues": ["diffusion.generate"]}'
    with pytest.raises(Invalid, match=said):
        parse_trace(['{"type": "tenant", "name": "a"}', line, *([worker] if line else [])])


def test_device_time_is_divided_by_weight_and_what_one_does_not_want_goes_to_the_others() -> None:
    weights = {"a": 1.0, "b": 1.0, "c": 2.0}

    assert max_min_fair(4.0, {"a": 9.0, "b": 9.0, "c": 9.0}, weights) == {"a": 1.0, "b": 1.0, "c": 2.0}
    assert max_min_fair(4.0, {"a": 0.5, "b": 9.0, "c": 1.0}, weights) == {"a": 0.5, "b": 2.5, "c": 1.0}
