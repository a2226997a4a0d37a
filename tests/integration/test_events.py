"""Events of a job: read in order, and dropped when they say nothing any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine

from calotype import events, queue, tables
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.jobs import Job, Progress
from calotype.tenants import Tenant

DAY = 86_400.0


@pytest.fixture
def told(engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]) -> Job:
    """A running job with one event of every type."""
    make_job()
    with transaction(engine) as conn:
        job = queue.claim(conn, make_worker(), ["diffusion.generate"], 60)
        assert job is not None
        for step in (1, 2):
            value = Progress(fraction=step / 2, step=step, total=2, stage="training")
            queue.progress(conn, job.id, job.epoch, value)
        queue.checkpoint(conn, job.id, job.epoch, {"step": 2})
        queue.tell(conn, job.id, job.epoch, [("metrics", {"loss": 0.5}), ("log", {"message": "on its way"})])
    return job


def types(engine: Engine, job: Job) -> list[str]:
    with transaction(engine) as conn:
        return [event.type for event in events.list_events(conn, job.tenant_id, job.id).events]


def end(engine: Engine, job: Job, days_ago: float) -> None:
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
        queue.acknowledge_cancel(conn, job.id, job.epoch)
    age(engine, job, days_ago)


def age(engine: Engine, job: Job, days: float) -> None:
    """Makes everything about a job so much older."""
    with transaction(engine) as conn:
        made = tables.events
        conn.execute(
            made.update().where(made.c.job_id == job.id).values(created_at=made.c.created_at - timedelta(days=days))
        )
        jobs = tables.jobs
        conn.execute(
            jobs.update().where(jobs.c.id == job.id).values(finished_at=jobs.c.finished_at - timedelta(days=days))
        )


def test_events_are_read_page_by_page_from_any_number_on(engine: Engine, told: Job) -> None:
    with transaction(engine) as conn:
        first = events.list_events(conn, told.tenant_id, told.id, limit=3)
        second = events.list_events(conn, told.tenant_id, told.id, after=first.events[-1].seq, limit=4)
        third = events.list_events(conn, told.tenant_id, told.id, after=second.events[-1].seq)
    assert [event.seq for event in first.events + second.events] == [1, 2, 3, 4, 5, 6, 7]
    assert (first.has_more, second.has_more, third.has_more) == (True, False, False)
    assert third.events == ()
    assert not second.ended
    assert second.version == events.Version(revision=queue_revision(engine, told), event_seq=7)


def queue_revision(engine: Engine, job: Job) -> int:
    with transaction(engine) as conn:
        return queue.get(conn, job.tenant_id, job.id).revision


def test_the_last_page_of_an_ended_job_says_so(engine: Engine, told: Job) -> None:
    end(engine, told, 0)
    with transaction(engine) as conn:
        page = events.list_events(conn, told.tenant_id, told.id, limit=8)
        last = events.list_events(conn, told.tenant_id, told.id, after=page.events[-1].seq, limit=8)
    assert not page.ended and page.has_more
    assert last.ended and last.events[-1].final
    assert [event.final for event in page.events + last.events] == [False] * 8 + [True]


def test_the_events_of_another_tenant_are_not_found(
    engine: Engine, told: Job, make_tenant: Callable[..., Tenant]
) -> None:
    stranger = make_tenant()
    with transaction(engine) as conn, pytest.raises(NotFound):
        events.list_events(conn, stranger.id, told.id)


def test_versions_tell_which_jobs_changed_and_which_are_gone(
    engine: Engine, told: Job, make_job: Callable[..., Job], tenant: Tenant
) -> None:
    other = make_job()
    with transaction(engine) as conn:
        before = events.versions(conn, [told.id, other.id, tenant.id])
        queue.tell(conn, told.id, told.epoch, [("log", {"message": "once more"})])
        after = events.versions(conn, [told.id, other.id])
    assert set(before) == {told.id, other.id}
    assert before[told.id] != after[told.id]
    assert before[other.id] == after[other.id]


def test_old_progress_of_an_ended_job_is_dropped_and_nothing_else(engine: Engine, told: Job) -> None:
    end(engine, told, days_ago=2)
    with transaction(engine) as conn:
        assert events.thin(conn, DAY) == 2
        assert events.thin(conn, DAY) == 0
    assert types(engine, told) == ["state", "state", "checkpoint", "metrics", "log", "state", "state"]
    with transaction(engine) as conn:
        assert queue.get(conn, told.tenant_id, told.id).progress is not None


def test_progress_of_a_job_that_runs_or_has_just_ended_is_kept(engine: Engine, told: Job) -> None:
    age(engine, told, days=2)
    with transaction(engine) as conn:
        assert events.thin(conn, DAY) == 0
    # It ended now; its progress is two days old.
    end(engine, told, days_ago=0)
    with transaction(engine) as conn:
        assert events.thin(conn, DAY) == 0
    assert types(engine, told).count("progress") == 2


def test_thinning_takes_so_many_at_a_time(engine: Engine, told: Job) -> None:
    end(engine, told, days_ago=2)
    with transaction(engine) as conn:
        assert [events.thin(conn, DAY, limit=1) for _ in range(3)] == [1, 1, 0]
