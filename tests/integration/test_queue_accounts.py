"""What is written down of device time: the share, the day's usage, the rates that estimates rest on."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE, TRAIN, Floor
from sqlalchemy import Engine

from calotype import queue, tables, usage
from calotype.jobs import Job, JobError, Kind
from calotype.queue import accounts
from calotype.scheduling import UNKNOWN_SECONDS, Rate
from calotype.tenants import Tenant
from calotype.usage import Usage

WRONG = JobError(code="bad_input", title="Bad input", detail="no such image", retryable=False)
AWAY = JobError(code="dependency_down", title="Dependency down", detail="the hub is away", retryable=True)


@pytest.fixture
def floor(engine: Engine, make_worker: Callable[..., UUID]) -> Floor:
    worker = make_worker((GENERATE, TRAIN))
    return Floor(engine, queue.Claimant(worker_id=worker, queues=(GENERATE, TRAIN), lease_seconds=600.0))


@pytest.fixture
def owner(make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant(weight=2.0)


def _usage(floor: Floor, tenant: Tenant) -> list[Usage]:
    today = datetime.now(UTC).date()
    found: list[Usage] = floor.do(usage.list_usage, today - timedelta(days=1), today, tenant.id)
    return found


def test_a_claim_charges_an_estimate_and_the_end_what_was_measured(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner)
    job = floor.take()
    assert job.charged == UNKNOWN_SECONDS["generate"] / 2.0
    assert (floor.share(owner)["vtime"], floor.share(owner)["running"]) == (job.charged, 1)
    floor.finish(job, 100.0)
    share = floor.share(owner)
    assert share["vtime"] == pytest.approx(50.0, abs=5.0)
    assert (share["running"], share["idle"]) == (0, True)


@pytest.mark.parametrize("way", ["fail", "retry", "release", "cancel", "reap"])
def test_every_way_out_of_a_workers_hands_settles(floor: Floor, owner: Tenant, way: str) -> None:
    floor.submit(owner)
    job = floor.take()
    if way == "fail":
        floor.left(job, 100.0, queue.fail, WRONG)
    elif way == "retry":
        floor.left(job, 100.0, queue.fail, AWAY, 600.0)
    elif way == "release":
        floor.left(job, 100.0, queue.release)
    elif way == "cancel":
        floor.do(queue.cancel, owner.id, job.id)
        floor.left(job, 100.0, queue.acknowledge_cancel)
    else:
        began = sa.func.now() - timedelta(seconds=400)
        # It lapsed five minutes ago; nobody worked since.
        floor.change(job, started_at=began, lease_expires_at=began + timedelta(seconds=100))
        floor.do(queue.reap)
    assert floor.job(job.id).gpu_seconds == pytest.approx(100.0, abs=5.0)
    share = floor.share(owner)
    assert share["vtime"] == pytest.approx(50.0, abs=5.0)
    assert share["settled"] == share["vtime"]
    # A job that was given back waits again.
    assert (share["running"], share["devices"], share["idle"]) == (0, 0.0, way not in ("release", "reap"))
    (day,) = _usage(floor, owner)
    assert day.gpu_seconds == pytest.approx(100.0, abs=5.0)
    assert (day.jobs, day.images) == (int(way in ("fail", "cancel")), 0)


def test_of_a_job_that_runs_is_known_what_is_charged_and_what_it_took_until_now(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner, 3, kind=Kind.TRAIN)
    first, second = floor.take(), floor.take()
    share = floor.share(owner)
    assert (share["vtime"], share["settled"]) == (first.charged + second.charged, 0.0)
    assert first.started_at is not None and second.started_at is not None
    assert share["devices"] == 2.0
    assert share["device_starts"] == pytest.approx(_second(first.started_at) + _second(second.started_at), abs=1e-6)
    floor.left(first, 10.0, queue.fail, WRONG)
    share = floor.share(owner)
    assert share["settled"] == pytest.approx(5.0, abs=2.5)
    assert share["vtime"] == pytest.approx(share["settled"] + second.charged)
    assert share["devices"] == 1.0


def _second(moment: datetime) -> float:
    return (moment - datetime(2026, 1, 1, tzinfo=UTC)).total_seconds()


def test_a_job_that_takes_longer_than_was_charged_is_charged_meanwhile_with_the_next_and_once_in_the_end(
    floor: Floor, owner: Tenant
) -> None:
    floor.submit(owner, 3)
    long = floor.take()
    _set_back(floor, long, 1000.0)
    assert floor.take().charged == long.charged
    assert floor.share(owner)["vtime"] == pytest.approx((1000.0 + 5.0) / 2, abs=2.5)
    _set_back(floor, long, 0.0)
    floor.finish(long, 1000.0)
    floor.finish(_held(floor, owner), 1.0)
    assert floor.share(owner)["vtime"] == pytest.approx(500.5, abs=5.0)


@pytest.mark.parametrize(("first", "left"), [("long", 105.0), ("short", 101.0)])
def test_the_overdue_part_of_a_charge_goes_with_the_job_that_was_overdue_whichever_ends_first(
    floor: Floor, make_tenant: Callable[..., Tenant], first: str, left: float
) -> None:
    owner = make_tenant()
    floor.submit(owner, 3)
    long = floor.take()
    _set_back(floor, long, 100.0)
    short = floor.take()
    assert (short.charged, floor.share(owner)["overdue"]) == (5.0, pytest.approx(95.0, abs=2.5))
    _set_back(floor, long, 0.0)
    if first == "long":
        floor.finish(long, 100.0)
    else:
        floor.finish(short, 1.0)
    share = floor.share(owner)
    assert share["vtime"] == pytest.approx(left, abs=2.5)
    assert share["overdue"] == pytest.approx(0.0 if first == "long" else 95.0, abs=2.5)
    floor.finish(_held(floor, owner), 1.0 if first == "long" else 100.0)
    share = floor.share(owner)
    assert (share["vtime"], share["overdue"]) == (pytest.approx(101.0, abs=2.5), 0.0)


def _set_back(floor: Floor, job: Job, seconds: float) -> None:
    """As if the job, which takes a device of its own, had been claimed so much earlier."""
    assert job.started_at is not None
    began, shares = job.started_at - timedelta(seconds=seconds), tables.shares
    moved = (floor.job(job.id).started_at or began) - began
    values = {"device_starts": shares.c.device_starts - moved.total_seconds()}
    floor.change(job, started_at=began)
    floor.do(lambda conn: conn.execute(shares.update().where(shares.c.tenant_id == job.tenant_id).values(**values)))


def _held(floor: Floor, tenant: Tenant) -> Job:
    jobs = tables.jobs
    mine = sa.select(jobs).where(jobs.c.tenant_id == tenant.id, jobs.c.state == "running")
    return floor.do(lambda conn: Job.from_row(conn.execute(mine).mappings().one()))  # type: ignore[no-any-return]


def test_device_time_of_all_attempts_is_added_up(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner)
    first = floor.take()
    floor.left(first, 100.0, queue.release)
    second = floor.take()
    assert floor.finish(second, 200.0).gpu_seconds == pytest.approx(300.0, abs=5.0)
    assert floor.share(owner)["vtime"] == pytest.approx(150.0, abs=5.0)


def test_usage_is_kept_per_day_and_queue(floor: Floor, owner: Tenant, make_tenant: Callable[..., Tenant]) -> None:
    stranger = make_tenant()
    floor.submit(owner, 2, units=4)
    floor.submit(owner, kind=Kind.TRAIN)
    floor.submit(stranger)
    for _ in range(4):
        floor.finish(floor.take())
    (canceled,) = floor.submit(owner)
    floor.do(queue.cancel, owner.id, canceled.id)
    (late,) = floor.submit(owner, deadline_seconds=60.0)
    floor.change(late, expires_at=sa.func.now() - timedelta(seconds=1))
    floor.do(queue.expire)
    generated, trained = sorted(_usage(floor, owner), key=lambda one: one.queue)
    assert (generated.queue, generated.jobs, generated.images, generated.cached) == (GENERATE, 4, 8, 0)
    assert (trained.queue, trained.jobs, trained.images) == (TRAIN, 1, 0)
    assert generated.gpu_seconds == pytest.approx(200.0, abs=5.0)
    assert generated.day == generated.day.today() or generated.day == datetime.now(UTC).date()
    today = datetime.now(UTC).date()
    everybody = floor.do(usage.list_usage, today - timedelta(days=1), today)
    assert {one.tenant for one in everybody} == {owner.name, stranger.name}
    assert floor.do(usage.list_usage, today - timedelta(days=9), today - timedelta(days=8)) == []


def test_a_job_that_succeeded_in_one_go_teaches_how_long_its_like_takes(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner, 3, model_key="m", work=2.0)
    floor.finish(floor.take(), 100.0)
    floor.finish(floor.take(), 300.0)
    known = floor.do(accounts.rate, GENERATE, "m")
    assert known is not None and known.jobs == 2
    # Mean of 50 and 150 seconds per unit of work, both with the same weight.
    assert known.mean == pytest.approx(100.0, abs=5.0)
    assert known.variance == pytest.approx(50.0**2, rel=0.1)
    assert floor.do(accounts.rate, GENERATE, accounts.ANY_MODEL) == known
    third = floor.take()
    assert third.charged == pytest.approx(known.mean * 2.0 / 2.0)


def test_a_model_that_is_not_known_is_estimated_like_others_of_its_queue(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner, model_key="m", work=1.0)
    floor.finish(floor.take(), 100.0)
    floor.submit(owner, model_key="unknown", work=3.0)
    floor.submit(owner, kind=Kind.TRAIN, model_key="m")
    assert floor.take().charged == pytest.approx(3 * 100.0 / 2.0, rel=0.05)
    assert floor.take().charged == UNKNOWN_SECONDS["train"] / 2.0


@pytest.mark.parametrize("way", ["failed", "resumed"])
def test_a_job_that_failed_or_was_resumed_teaches_nothing(floor: Floor, owner: Tenant, way: str) -> None:
    floor.submit(owner)
    job = floor.take()
    if way == "failed":
        floor.left(job, 100.0, queue.fail, WRONG)
    else:
        floor.left(job, 100.0, queue.release)
        floor.finish(floor.take())
    assert floor.do(accounts.rate, GENERATE, accounts.ANY_MODEL) is None


def test_a_rate_that_another_job_is_teaching_is_left_to_it(floor: Floor, owner: Tenant, engine: Engine) -> None:
    floor.submit(owner, 2)
    floor.finish(floor.take())
    before: Rate = floor.do(accounts.rate, GENERATE, accounts.ANY_MODEL)
    with engine.begin() as conn:
        conn.execute(sa.select(tables.rates).with_for_update())
        floor.finish(floor.take())
    assert floor.do(accounts.rate, GENERATE, accounts.ANY_MODEL) == before


def test_a_tenant_is_idle_when_its_last_job_is_canceled_or_expires(
    floor: Floor, owner: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    other = make_tenant()
    for tenant in (owner, other):
        floor.submit(tenant, 2)
        floor.finish(floor.take())
    assert not floor.share(owner)["idle"] and not floor.share(other)["idle"]
    for job in _queued(floor, owner):
        floor.do(queue.cancel, owner.id, job.id)
    assert floor.share(owner)["idle"] and not floor.share(other)["idle"]
    for job in _queued(floor, other):
        floor.change(job, expires_at=sa.func.now() - timedelta(seconds=1))
    floor.do(queue.expire)
    floor.do(queue.tidy)
    assert floor.share(other)["idle"]


def test_tidying_removes_who_has_nothing_open_and_keeps_who_has(
    floor: Floor, owner: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    running, waiting, new = make_tenant(), make_tenant(), make_tenant()
    floor.submit(owner)
    floor.finish(floor.take())
    floor.submit(running)
    held = floor.take()
    floor.submit(waiting)
    assert floor.do(queue.tidy) == 1
    assert floor.do(queue.tidy) == 0
    # What was running comes back into a walk that still knows its tenant.
    floor.do(queue.release, held.id, held.epoch)
    floor.submit(owner)
    floor.submit(new)
    assert {floor.take().tenant_id for _ in range(4)} == {owner.id, running.id, waiting.id, new.id}


def test_a_submit_and_tidying_at_once_lose_no_job(floor: Floor, owner: Tenant, engine: Engine) -> None:
    floor.submit(owner)
    floor.finish(floor.take())
    with engine.begin() as conn:
        job: Job = queue.submit(
            conn,
            queue.NewJob(
                tenant_id=owner.id,
                kind=Kind.GENERATE,
                family=floor.job(_any(floor)).family,
                model=None,
                spec={},
            ),
        )
        # The entry is there, its job is not visible yet.
        assert floor.do(queue.tidy) == 0
    assert floor.take().id == job.id


def _any(floor: Floor) -> UUID:
    found: UUID = floor.do(lambda conn: conn.execute(sa.select(tables.jobs.c.id).limit(1)).scalar_one())
    return found


def _queued(floor: Floor, tenant: Tenant) -> list[Job]:
    jobs = tables.jobs
    mine = sa.select(jobs).where(jobs.c.tenant_id == tenant.id, jobs.c.state == "queued")
    return floor.do(lambda conn: [Job.from_row(row) for row in conn.execute(mine).mappings()])  # type: ignore[no-any-return]
