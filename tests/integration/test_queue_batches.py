"""Jobs that share a call of the model: who joins whose, within which limits, and what each of them is charged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE, Floor
from sqlalchemy import Engine

from calotype import pauses, queue, tables, workers
from calotype.jobs import Job, JobError, State
from calotype.queue import Outcome
from calotype.tenants import Tenant

ALIKE: dict[str, Any] = {"batch_key": "alike", "batch_limit": 16}
WRONG = JobError(code="bad_input", title="Bad input", detail="no such image", retryable=False)
AWAY = JobError(code="dependency_down", title="Dependency down", detail="the hub is away", retryable=True)


@pytest.fixture
def floor(engine: Engine, make_worker: Callable[..., UUID]) -> Floor:
    claimant = queue.Claimant(worker_id=make_worker(), queues=(GENERATE,), lease_seconds=600.0, most_units=16)
    return Floor(engine, claimant)


def _ids(jobs: Any) -> list[UUID]:
    return [job.id for job in jobs]


def test_equal_jobs_of_several_tenants_share_a_call_in_the_order_of_their_ranks(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    one, other, third = (make_tenant() for _ in range(3))
    jobs = [*floor.submit(one, 2, **ALIKE), *floor.submit(other, 2, **ALIKE), *floor.submit(third, **ALIKE)]
    batch = floor.claim().jobs
    assert batch[0].tenant_id in {one.id, other.id, third.id}
    assert set(_ids(batch)) == set(_ids(jobs))
    assert _ids(batch)[1:] == [job.id for job in jobs if job.id != batch[0].id]


def test_every_member_has_a_claim_of_its_own(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    floor.submit(make_tenant(), **ALIKE)
    floor.submit(make_tenant(), 2, **ALIKE)
    first, second, third = floor.claim().jobs
    for job in (first, second, third):
        assert (job.state, job.epoch, job.attempt, job.worker_id) == (State.RUNNING, 1, 1, floor.claimant.worker_id)
    floor.do(queue.cancel, second.tenant_id, second.id)
    assert floor.do(queue.heartbeat, second.id, 1, 60.0) is State.CANCELING
    assert floor.do(queue.acknowledge_cancel, second.id, 1).state is State.CANCELED
    assert floor.do(queue.fail, third.id, 1, WRONG).state is State.FAILED
    assert floor.do(queue.finish, first.id, 1, Outcome(result={})).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "differing", [{"batch_key": "other"}, {"batch_key": None}, {"batch_key": "alike", "leave": "attempt"}]
)
def test_only_jobs_that_are_alike_and_were_never_tried_join(
    floor: Floor, make_tenant: Callable[..., Tenant], differing: dict[str, Any]
) -> None:
    tenant = make_tenant()
    (first,) = floor.submit(tenant, **ALIKE)
    (different,) = floor.submit(tenant, batch_key=differing["batch_key"], batch_limit=16)
    if "leave" in differing:
        floor.change(different, attempt=1)
    (third,) = floor.submit(tenant, **ALIKE)
    assert _ids(floor.claim().jobs) == [first.id, third.id]
    assert _ids(floor.claim().jobs) == [different.id]


def test_a_job_that_failed_before_runs_alone_however_many_would_join(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant()
    (crashed,) = floor.submit(tenant, **ALIKE)
    floor.take()
    floor.change(crashed, lease_expires_at=sa.func.now() - timedelta(seconds=1))
    assert _ids(floor.do(queue.reap)) == [crashed.id]
    others = floor.submit(tenant, 3, **ALIKE)
    assert _ids(floor.claim().jobs) == [crashed.id]
    assert _ids(floor.claim().jobs) == _ids(others)


def test_a_job_that_was_given_back_unharmed_joins_again(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    jobs = floor.submit(make_tenant(), 2, **ALIKE)
    for job in floor.claim().jobs:
        floor.do(queue.release, job.id, job.epoch)
    assert _ids(floor.claim().jobs) == _ids(jobs)


def test_a_batch_is_filled_to_the_smaller_limit_and_a_gap_by_a_later_job(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant()
    units = [4, 6, 8, 2, 1]
    jobs = [floor.submit(tenant, units=many, **ALIKE)[0] for many in units]
    assert _ids(floor.claim(most_units=13).jobs) == [jobs[0].id, jobs[1].id, jobs[3].id, jobs[4].id]
    assert _ids(floor.claim(most_units=13).jobs) == [jobs[2].id]
    small = floor.submit(tenant, 3, batch_key="small", batch_limit=2)
    assert _ids(floor.claim().jobs) == _ids(small[:2])


def test_a_worker_that_takes_one_unit_gets_one_job(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    floor.submit(make_tenant(), 3, **ALIKE)
    assert len(floor.claim(most_units=1).jobs) == 1


def test_limits_hold_inside_a_batch(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    limited, free, stopped = make_tenant(max_running=2), make_tenant(), make_tenant(max_running=0)
    for tenant in (stopped, limited, free):
        floor.submit(tenant, 4, **ALIKE)
    batch = floor.claim().jobs
    owners = [job.tenant_id for job in batch]
    assert (owners.count(limited.id), owners.count(free.id), owners.count(stopped.id)) == (2, 4, 0)
    assert floor.claim().jobs == ()
    assert floor.share(limited)["running"] == 2


def test_each_is_charged_for_its_part_of_the_call(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    small, large = make_tenant(), make_tenant(weight=2.0)
    floor.submit(small, units=1, **ALIKE)
    floor.submit(large, units=3, **ALIKE)
    batch = {job.tenant_id: job for job in floor.claim().jobs}
    assert batch[small.id].batch_share == 0.25 and batch[large.id].batch_share == 0.75
    for job in batch.values():
        floor.finish(job, 1000.0)
    assert floor.job(batch[small.id].id).gpu_seconds == pytest.approx(250.0, abs=5.0)
    assert floor.job(batch[large.id].id).gpu_seconds == pytest.approx(750.0, abs=5.0)
    assert floor.share(small)["vtime"] == pytest.approx(250.0, abs=5.0)
    assert floor.share(large)["vtime"] == pytest.approx(375.0, abs=5.0)


def test_a_paused_queue_gives_no_jobs_until_it_is_resumed(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    jobs = floor.submit(make_tenant(), 2, **ALIKE)
    floor.do(pauses.pause, GENERATE, "new drivers")
    assert floor.claim().jobs == ()
    floor.do(pauses.resume, GENERATE)
    assert _ids(floor.claim().jobs) == _ids(jobs)


def test_a_drained_worker_gets_no_jobs_until_it_is_undrained(
    floor: Floor, make_tenant: Callable[..., Tenant], make_worker: Callable[..., UUID]
) -> None:
    floor.submit(make_tenant(), 2)
    floor.do(workers.drain, floor.claimant.worker_id)
    assert floor.claim().jobs == ()
    assert len(floor.claim(worker_id=make_worker()).jobs) == 1
    floor.do(workers.undrain, floor.claimant.worker_id)
    assert len(floor.claim().jobs) == 1


def test_members_that_somebody_holds_are_left_out(
    floor: Floor, engine: Engine, make_tenant: Callable[..., Tenant]
) -> None:
    first, held, third = floor.submit(make_tenant(), 3, **ALIKE)
    with engine.begin() as conn:
        conn.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == held.id).with_for_update())
        batch: tuple[Job, ...] = floor.claim().jobs
    assert _ids(batch) == [first.id, third.id]
    assert [job.batch_share for job in batch] == [0.5, 0.5]
