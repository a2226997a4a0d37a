"""Whose turn it is: device time is shared out by weight, whatever the jobs cost and however many wait."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE, TRAIN, Devices, Floor, counted
from sqlalchemy import Engine

from calotype import queue, tables, tenants
from calotype.jobs import Job, JobError, Kind
from calotype.queue import claiming
from calotype.tenants import Tenant

AWAY = JobError(code="dependency_down", title="Dependency down", detail="the hub is away", retryable=True)


@pytest.fixture
def floor(engine: Engine, make_worker: Callable[..., UUID]) -> Floor:
    worker = make_worker((GENERATE, TRAIN))
    return Floor(engine, queue.Claimant(worker_id=worker, queues=(GENERATE, TRAIN), lease_seconds=600.0))


@pytest.mark.parametrize("devices", [1, 3])
def test_weights_of_3_to_1_give_device_seconds_of_3_to_1(
    floor: Floor, make_tenant: Callable[..., Tenant], devices: int
) -> None:
    heavy, light = make_tenant(weight=3.0), make_tenant(weight=1.0)
    # Those of the heavier tenant are longer and less regular: what counts is time, not jobs, and estimates are wrong.
    dice, lengths = random.Random(5), {heavy.id: (10.0, 130.0), light.id: (20.0, 30.0)}
    taken: dict[UUID, float] = {}

    def seconds(job: Job) -> float:
        return taken.setdefault(job.id, dice.uniform(*lengths[job.tenant_id]))

    floor.submit(light, 150)
    floor.submit(heavy, 150)
    had = Devices(floor, devices, seconds).run(200)
    assert sum(had.values()) > 5000
    assert had[heavy.id] / sum(had.values()) == pytest.approx(0.75, rel=0.05)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_short_jobs_of_which_nothing_is_known_are_given_time_by_weight_from_the_first_on(
    floor: Floor, make_tenant: Callable[..., Tenant], devices: int
) -> None:
    heavy, light = make_tenant(weight=3.0), make_tenant(weight=1.0)
    floor.submit(heavy, 200, kind=Kind.TRAIN)
    floor.submit(light, 200, kind=Kind.TRAIN)
    # Each is charged with 600 s until the first has ended.
    Devices(floor, devices, _short()).run(200)
    assert _given(floor, heavy) / _given(floor, light) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("wrong", [50.0, 0.02])
def test_who_comes_beside_jobs_with_a_wrong_estimate_does_not_pay_for_it(
    floor: Floor, make_tenant: Callable[..., Tenant], wrong: float
) -> None:
    heavy, light, seconds = make_tenant(weight=3.0), make_tenant(weight=1.0), _short()
    floor.submit(heavy, 20)
    floor.submit(heavy, 4, work=wrong)
    floor.submit(heavy, 200)
    devices = Devices(floor, 2, seconds)
    devices.run(21)
    before = _given(floor, heavy)
    # Two of the wrong ones run.
    floor.submit(light, 200)
    devices.run(200)
    assert (_given(floor, heavy) - before) / _given(floor, light) == pytest.approx(3.0, rel=0.05)


def _short() -> Callable[[Job], float]:
    """Seconds of jobs, the same whenever a job is asked about; long beside the real time of a test."""
    dice, taken = random.Random(7), {}  # type: ignore[var-annotated]
    return lambda job: taken.setdefault(job.id, dice.uniform(5.0, 15.0))


def _given(floor: Floor, tenant: Tenant) -> float:
    """Device-seconds that are settled."""
    jobs = tables.jobs
    total = sa.select(sa.func.coalesce(sa.func.sum(jobs.c.gpu_seconds), 0.0)).where(jobs.c.tenant_id == tenant.id)
    return float(floor.do(lambda conn: conn.execute(total).scalar_one()))


def test_a_changed_weight_counts_from_the_next_claim(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    one, other = make_tenant("one"), make_tenant("other")
    floor.submit(one, 30)
    floor.submit(other, 30)
    assert min(counted(floor.owners(10)).values()) >= 4
    floor.do(tenants.change_tenant, "one", weight=3.0)
    assert counted(floor.owners(20))[one.id] in range(13, 18)


def test_a_lone_job_beside_a_thousand_of_another_tenant_is_next(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    many, lone = make_tenant(), make_tenant()
    floor.submit(many, 1000)
    floor.owners(3)
    (job,) = floor.submit(lone)
    assert floor.take().id == job.id


def test_who_comes_back_does_not_live_on_time_that_it_did_not_use(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    busy, back, new = make_tenant(), make_tenant(), make_tenant()
    floor.submit(back)
    floor.submit(busy, 40)
    floor.owners(21)
    floor.submit(back, 20)
    floor.submit(new, 20)
    assert counted(floor.owners(15)) == {busy.id: 5, back.id: 5, new.id: 5}


def test_who_used_an_empty_pool_is_not_punished_for_it(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    alone, new = make_tenant(), make_tenant()
    floor.submit(alone, 10)
    floor.owners(10)
    assert floor.share(alone)["idle"]
    floor.submit(new, 10)
    floor.owners(2)
    floor.submit(alone, 10)
    assert counted(floor.owners(6)) == {alone.id: 3, new.id: 3}


def test_one_long_job_that_began_long_ago_lets_nobody_begin_in_the_past(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    research, shop, bulk = make_tenant(), make_tenant(), make_tenant()
    floor.submit(research, kind=Kind.TRAIN)
    training = floor.take()
    floor.submit(shop, 20)
    floor.owners(20)
    assert floor.share(research)["vtime"] < floor.share(shop)["vtime"] / 2
    # Nobody else has anything to run when it comes.
    floor.submit(bulk, 30)
    floor.owners(1)
    floor.submit(shop, 10)
    assert counted(floor.owners(10)) == {bulk.id: 5, shop.id: 5}
    floor.finish(training)


def test_a_newcomer_is_measured_by_those_it_competes_with(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    busy, trains, new = make_tenant(), make_tenant(), make_tenant()
    floor.submit(trains, kind=Kind.TRAIN)
    training = floor.take(queues=(TRAIN,))
    # Who has other workers to itself is given far more meanwhile.
    floor.submit(busy, 30)
    floor.owners(30, queues=(GENERATE,))
    floor.submit(new, 20, kind=Kind.TRAIN)
    floor.owners(1, queues=(TRAIN,))
    floor.submit(trains, 20, kind=Kind.TRAIN)
    # The training that runs is charged with 600 s, six of the newcomer's.
    assert counted(floor.owners(15, queues=(TRAIN,)))[new.id] in range(9, 12)
    floor.finish(training)


def test_a_tenant_that_waits_out_a_backoff_lets_nobody_begin_in_the_past(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    failing, busy, new = make_tenant(), make_tenant(), make_tenant()
    floor.submit(failing)
    job = floor.take()
    floor.left(job, 1.0, queue.fail, AWAY, 3600.0)
    floor.submit(busy, 30)
    floor.owners(10)
    floor.submit(new, 30)
    assert counted(floor.owners(6)) == {busy.id: 3, new.id: 3}
    floor.submit(failing, 30)
    assert counted(floor.owners(9)) == {busy.id: 3, new.id: 3, failing.id: 3}


def test_a_tenant_whose_one_long_job_runs_saves_nothing_up(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    research, shop = make_tenant(), make_tenant()
    floor.submit(research, kind=Kind.TRAIN)
    training = floor.take()
    floor.submit(shop, 60)
    floor.owners(30)
    # It ran for the 600 s that were charged; the shop had 3,000 s meanwhile.
    floor.ran(training, 600.0)
    floor.submit(research, 30)
    assert counted(floor.owners(10)) == {research.id: 5, shop.id: 5}
    floor.finish(training, 600.0)
    assert counted(floor.owners(10)) == {research.id: 5, shop.id: 5}


def test_a_tenant_at_its_limit_saves_nothing_up(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    limited, busy = make_tenant("limited", max_running=1), make_tenant("busy")
    floor.submit(limited, 30)
    floor.submit(busy, 30)
    held = [floor.take(), floor.take()]
    (stuck,) = (job for job in held if job.tenant_id == limited.id)
    (other,) = (job for job in held if job.tenant_id == busy.id)
    floor.finish(other)
    assert set(floor.owners(15)) == {busy.id}
    floor.finish(stuck)
    floor.do(tenants.change_tenant, "limited", max_running=None)
    assert counted(floor.owners(8)) == {limited.id: 4, busy.id: 4}


def test_tenants_that_are_all_limited_take_turns(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    crowd = [make_tenant(max_running=1) for _ in range(3)]
    for tenant in crowd:
        floor.submit(tenant, 10)
    # Of those who come to an empty pool the first gets one job ahead.
    assert sorted(counted(floor.owners(13)).values()) == [4, 4, 5]


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_a_limit_of_one_job_each_leaves_tenants_of_one_device_their_time_by_weight(
    floor: Floor, make_tenant: Callable[..., Tenant], weight: float
) -> None:
    quick, slow = make_tenant(weight=weight, max_running=1), make_tenant(max_running=1)
    floor.submit(quick, 80)
    floor.submit(slow, 20)
    had = Devices(floor, 1, lambda job: 20.0 if job.tenant_id == quick.id else 100.0).run(60)
    assert had[quick.id] / had[slow.id] == pytest.approx(weight, rel=0.15)


def test_who_keeps_two_jobs_in_flight_is_owed_what_it_waits_for(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    client, busy = make_tenant(), make_tenant()
    floor.submit(client)
    floor.submit(busy, 20)
    owners = []
    for _ in range(60):
        job = floor.take()
        # Its next one comes a moment after a claim that found nothing more of it.
        if job.tenant_id == client.id:
            floor.submit(client)
        floor.finish(job, 20.0 if job.tenant_id == client.id else 100.0)
        owners.append(job.tenant_id)
    assert counted(owners)[client.id] == pytest.approx(50, abs=4)


def test_who_comes_back_gets_no_credit_for_the_job_that_was_charged_too_much(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    research, shop = make_tenant(), make_tenant()
    floor.submit(research, kind=Kind.TRAIN)
    training = floor.take()
    floor.submit(shop, 60)
    floor.owners(30)
    # It was charged with 600 s, and ends after 10; the shop had 3,000 s meanwhile.
    floor.submit(research, 30)
    assert floor.owners(1) == [research.id]
    floor.finish(training, 10.0)
    assert counted(floor.owners(11)) == {research.id: 5, shop.id: 6}


def test_pools_are_shared_out_each_by_itself(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    one, other = make_tenant(), make_tenant()
    floor.submit(one, 20)
    floor.owners(6, pool="a")
    floor.submit(other, 20)
    assert min(counted(floor.owners(10, pool="b")).values()) >= 4


def test_a_tenants_own_jobs_go_by_rank_over_all_queues_and_of_equal_ranks_by_submission(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant()
    # One transaction, so one time of submission.
    first = floor.submit(tenant, 5)
    train = floor.submit(tenant, kind=Kind.TRAIN)
    urgent = floor.submit(tenant, priority=9)
    assert len({job.created_at for job in first}) == 1
    taken = [floor.take().id for _ in range(7)]
    assert taken == [job.id for job in (*urgent, *first, *train)]


def test_a_job_that_is_being_looked_at_is_passed_over_for_the_next_of_its_tenant(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    first, second = floor.submit(make_tenant(), 2)
    with engine.begin() as conn:
        conn.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == first.id).with_for_update())
        assert floor.take().id == second.id
    assert floor.take().id == first.id


def test_jobs_that_others_hold_hide_none_of_the_rest_of_their_tenant(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    jobs = floor.submit(make_tenant(), 6)
    with engine.begin() as conn:
        held = [job.id for job in jobs[:5]]
        conn.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id.in_(held)).with_for_update())
        assert floor.take().id == jobs[5].id
        assert floor.claim().jobs == ()
    assert [floor.take().id for _ in held] == held


def test_a_loaded_job_of_a_tenant_that_somebody_has_locked_is_tried_once_in_a_claim(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm, stuck, free = make_tenant(), make_tenant(), make_tenant()
    for seconds, tenant in enumerate((stuck, free, warm)):
        floor.submit(tenant)
        floor.finish(floor.take(), 100.0 * (seconds + 1))
    (hot,), (first,), (second,) = (
        floor.submit(tenant, model_key=key) for tenant, key in ((warm, "m"), (stuck, "n"), (free, "n"))
    )
    tried, take = [], claiming._lock_and_take

    def watched(conn: sa.Connection, claimant: queue.Claimant, job: Any, *rest: Any, **how: Any) -> tuple[Job, ...]:
        tried.append(job.id)
        return take(conn, claimant, job, *rest, **how)

    monkeypatch.setattr(claiming, "_lock_and_take", watched)
    key = tables.shares.c.tenant_id
    with engine.begin() as conn:
        conn.execute(sa.select(key).where(key.in_([warm.id, stuck.id])).with_for_update())
        assert floor.take(loaded=("m",), may_pass=True).id == second.id
    assert tried == [hot.id, first.id, second.id]


@pytest.mark.parametrize("locked", ["share", "limit"])
def test_whoever_holds_the_lock_of_a_tenant_stops_no_job_of_others(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant], locked: str
) -> None:
    stuck, other = make_tenant(max_running=3), make_tenant()
    alike = {"batch_key": "alike", "batch_limit": 4}
    for tenant in (stuck, other):
        floor.submit(tenant)
        floor.finish(floor.take(), 1.0 if tenant is stuck else 2.0)
    (first,), (second, third) = floor.submit(stuck, **alike), floor.submit(other, 2, **alike)
    key = tables.shares.c.tenant_id if locked == "share" else tables.tenants.c.id
    with engine.begin() as conn:
        conn.execute(sa.select(key).where(key == stuck.id).with_for_update())
        # It would be the turn of the first, and it could join the batch of the others.
        assert {job.id for job in floor.claim(most_units=4).jobs} == {second.id, third.id}
        assert floor.claim().jobs == ()
    assert floor.take().id == first.id


def test_a_claim_does_not_wait_for_whoever_names_a_queued_job(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    (job,) = floor.submit(make_tenant())
    with engine.begin() as conn:
        conn.execute(sa.select(tables.jobs.c.id).with_for_update(read=True, key_share=True))
        assert floor.take().id == job.id


def test_a_deadline_or_a_backoff_keeps_a_job_from_being_claimed(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    late, resting, good = floor.submit(make_tenant(), 3)
    now = sa.func.now()
    for job, values in (
        (late, {"expires_at": now - timedelta(seconds=1)}),
        (resting, {"available_at": now + timedelta(seconds=60)}),
    ):
        floor.change(job, **values)
    assert floor.take().id == good.id
    assert floor.claim().jobs == ()
