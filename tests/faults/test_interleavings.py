"""All interleavings of workers, reaper and user up to a depth: the real queue allows none that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from calotype import queue, tables, workers
from calotype.database import transaction
from calotype.ids import new_id
from calotype.jobs import Job, State
from calotype.tenants import Tenant
from tests.faults.explorer import QUEUE, REAL, Explorer, ViolationError


@pytest.fixture
def explore(engine: Engine, tenant: Tenant, submit: Callable[..., Job]) -> Callable[..., Explorer]:
    """``explore(depth, jobs=1, **broken)``: a search over fresh jobs, with some functions of the queue replaced."""

    def run(depth: int, jobs: int = 1, **broken: Callable[..., Any]) -> Explorer:
        for _ in range(jobs):
            submit(max_attempts=2)
        crew = {name: _register(engine, name) for name in ("A", "B")}
        with engine.connect() as conn:
            explorer = Explorer(conn, tenant.id, crew, {**REAL, **broken})
            try:
                explorer.run(depth)
            finally:
                conn.rollback()
        return explorer

    return run


def _register(engine: Engine, name: str) -> UUID:
    info = workers.WorkerInfo(
        id=new_id(), name=name, hostname="host", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="test"
    )
    with transaction(engine) as conn:
        return workers.register(conn, info).id


def test_no_interleaving_of_two_workers_over_one_job_breaks_a_rule(explore: Callable[..., Explorer]) -> None:
    explored = explore(10)
    # A search that stopped early would find nothing, too.
    assert len(explored.seen) > 100


def test_no_interleaving_of_two_workers_over_two_jobs_breaks_a_rule(explore: Callable[..., Explorer]) -> None:
    explored = explore(6, jobs=2)
    assert len(explored.seen) > 100


def finish_without_the_epoch(conn: Connection, job_id: UUID, epoch: int, outcome: queue.Outcome) -> Job:
    """Asks only whether somebody holds the job."""
    held = conn.scalar(sa.select(tables.jobs.c.epoch).where(tables.jobs.c.id == job_id))
    return queue.finish(conn, job_id, held, outcome)


def heartbeat_without_the_epoch(conn: Connection, job_id: UUID, epoch: int, lease_seconds: float) -> State:
    held = conn.scalar(sa.select(tables.jobs.c.epoch).where(tables.jobs.c.id == job_id))
    return queue.heartbeat(conn, job_id, held, lease_seconds)


def claim_with_the_old_epoch(conn: Connection, worker_id: UUID, queues: Sequence[str], lease: float) -> Job | None:
    """Gives out the epoch that the job had."""
    job = queue.claim(conn, worker_id, queues, lease)
    if job is not None and job.epoch > 1:
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(epoch=job.epoch - 1))
        job = Job.from_row(conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job.id)).mappings().one())
    return job


def reap_whatever_the_lease(conn: Connection) -> list[Job]:
    """Takes jobs from workers whose lease is still good."""
    past = sa.text("now() - interval '1 s'")
    conn.execute(tables.jobs.update().where(tables.jobs.c.lease_expires_at.is_not(None)).values(lease_expires_at=past))
    return queue.reap(conn)


def reap_for_ever(conn: Connection) -> list[Job]:
    """Gives one attempt more each time."""
    reaped = queue.reap(conn)
    conn.execute(tables.jobs.update().where(tables.jobs.c.state == State.QUEUED).values(attempt=2))
    return reaped


def cancel_what_has_ended(conn: Connection, tenant_id: UUID, job_id: UUID) -> Job:
    """Obeys the user also when it is too late."""
    job = queue.cancel(conn, tenant_id, job_id)
    if job.state is State.SUCCEEDED:
        values: dict[str, Any] = {"state": State.CANCELED, "result": None}
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(**values))
    return job


@pytest.mark.parametrize(
    ("name", "broken", "wrong"),
    [
        ("finish", finish_without_the_epoch, "finish was accepted from a worker whose lease is lost"),
        ("heartbeat", heartbeat_without_the_epoch, "heartbeat was accepted from a worker whose lease is lost"),
        ("claim", claim_with_the_old_epoch, "was given out before"),
        ("reap", reap_whatever_the_lease, "reaped other leases than those that lapsed"),
        ("reap", reap_for_ever, "3 attempts of 2"),
        ("cancel", cancel_what_has_ended, "what had ended was changed"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_deliberately_broken_queue_is_found_out(
    name: str, broken: Callable[..., Any], wrong: str, explore: Callable[..., Explorer]
) -> None:
    with pytest.raises(ViolationError, match=wrong):
        explore(6, **{name: broken})
