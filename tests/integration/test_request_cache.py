"""Equal jobs of a tenant share one run: answered from a finished one, or waiting for one that is on its way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import queue, request_cache, retention, tables
from calotype.database import transaction
from calotype.errors import CancelRequested, LimitExceeded
from calotype.jobs import Artifact, Job, JobError, State
from calotype.tenants import Tenant

QUEUES = ("diffusion.generate",)
BROKEN = JobError(code="dependency_down", title="Dependency down", detail="the store is away", retryable=True)
WRONG = JobError(code="bad_input", title="Bad input", detail="no such image", retryable=False)

Claim = Callable[..., Job]
Make = Callable[..., Job]


@pytest.fixture
def make(make_job: Make) -> Make:
    """``make(seed=1, prompt="a")``: a job for the cache; equal arguments are equal jobs."""

    def submit(seed: int = 1, prompt: str = "a", **values: Any) -> Job:
        return make_job(**{"cache_key": f"{prompt} {seed}", "any_seed_key": prompt, **values})

    return submit


@pytest.fixture
def claim(engine: Engine, make_worker: Callable[..., UUID]) -> Claim:
    worker = make_worker(QUEUES)

    def take(lease: float = 60.0) -> Job:
        with transaction(engine) as conn:
            job = queue.claim(conn, worker, QUEUES, lease)
        assert job is not None
        return job

    return take


@pytest.fixture
def nothing_to_claim(engine: Engine, make_worker: Callable[..., UUID]) -> Callable[[], bool]:
    worker = make_worker(QUEUES)

    def look() -> bool:
        with transaction(engine) as conn:
            return queue.claim(conn, worker, QUEUES, 60.0) is None

    return look


@pytest.fixture
def done(make: Make, claim: Claim, engine: Engine) -> Callable[..., Job]:
    """``done(seed=1, prompt="a")``: such a job, finished with one image."""

    def run(**values: Any) -> Job:
        job = make(**values)
        assert claim().id == job.id
        return finish(engine, job)

    return run


def do(engine: Engine, action: Callable[..., Any], *arguments: Any) -> Any:
    with transaction(engine) as conn:
        return action(conn, *arguments)


def outcome(job: Job) -> queue.Outcome:
    image = Artifact(
        name="image-0.png", object_key=key_of(job), content_type="image/png", bytes=3, sha256="0" * 64, seed=7
    )
    return queue.Outcome(result={"seconds": 1.0}, artifacts=[image])


def key_of(job: Job) -> str:
    return f"tenants/{job.tenant_id}/jobs/{job.id}/1/image-0.png"


def finish(engine: Engine, job: Job, epoch: int = 1) -> Job:
    ended: Job = do(engine, queue.finish, job.id, epoch, outcome(job))
    return ended


def look(engine: Engine, job: Job) -> Job:
    found: Job = do(engine, queue.get, job.tenant_id, job.id)
    return found


def keys(engine: Engine, job: Job) -> list[str]:
    found = do(engine, queue.artifacts_of, [job.id]).get(job.id, [])
    return [artifact.object_key for artifact in found]


def told(engine: Engine, job: Job) -> list[str]:
    events = tables.events
    with transaction(engine) as conn:
        rows = conn.execute(sa.select(events.c.data).where(events.c.job_id == job.id).order_by(events.c.seq))
        return [data["state"] for data in rows.scalars()]


def change(engine: Engine, job: Job, **values: Any) -> None:
    with transaction(engine) as conn:
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(**values))


def used(engine: Engine, tenant: Tenant) -> tuple[int, int, int]:
    """Jobs, cached jobs and images of a tenant."""
    usage = tables.usage
    with transaction(engine) as conn:
        query = sa.select(sa.func.sum(usage.c.jobs), sa.func.sum(usage.c.cached), sa.func.sum(usage.c.images))
        return tuple(int(value) for value in conn.execute(query.where(usage.c.tenant_id == tenant.id)).one())  # type: ignore[return-value]


# --- A finished equal ---


def test_an_equal_job_is_answered_at_once_from_the_artifacts_of_a_finished_one(
    engine: Engine, make: Make, done: Callable[..., Job], tenant: Tenant
) -> None:
    source = done()
    job = make()
    assert (job.state, job.attempt, job.started_at, job.leader_id) == (State.SUCCEEDED, 0, None, None)
    assert job.result == {"seconds": 1.0, "cached": True, "cached_from": str(source.id)}
    assert keys(engine, job) == keys(engine, source) == [key_of(source)]
    assert told(engine, job) == ["queued", "succeeded"]
    assert used(engine, tenant) == (2, 1, 1)


def test_what_a_cached_job_shows_answers_again_when_the_first_is_deleted(
    engine: Engine, make: Make, done: Callable[..., Job]
) -> None:
    source = done()
    second = make()
    assert do(engine, queue.delete, source.tenant_id, source.id) == []
    third = make()
    assert third.result is not None and third.result["cached_from"] == str(second.id)
    assert do(engine, queue.delete, source.tenant_id, second.id) == []
    assert do(engine, queue.delete, source.tenant_id, third.id) == [key_of(source)]
    assert make().state is State.QUEUED


def test_another_spec_and_another_tenant_are_not_answered(
    make: Make, done: Callable[..., Job], make_tenant: Callable[..., Tenant]
) -> None:
    done()
    for other in (make(seed=2), make(prompt="b"), make(tenant_id=make_tenant().id)):
        assert (other.state, other.leader_id) == (State.QUEUED, None)


def test_a_failed_or_canceled_job_answers_nobody(engine: Engine, make: Make, claim: Claim) -> None:
    failed = make()
    claim()
    do(engine, queue.fail, failed.id, 1, WRONG)
    canceled = make()
    assert (canceled.state, canceled.leader_id) == (State.QUEUED, None)
    do(engine, queue.cancel, canceled.tenant_id, canceled.id)
    assert (make().leader_id, look(engine, failed).state) == (None, State.FAILED)


def test_bypass_neither_asks_nor_answers(make: Make, done: Callable[..., Job]) -> None:
    done()
    assert make(cache="bypass", cache_key=None, any_seed_key=None).state is State.QUEUED
    assert make(cache="bypass").state is State.QUEUED


def test_any_seed_is_answered_whatever_the_seed_and_best_by_its_own(make: Make, done: Callable[..., Job]) -> None:
    first, second = done(seed=1), done(seed=2)
    exact, other = make(seed=1, cache="any_seed"), make(seed=3, cache="any_seed")
    assert exact.result is not None and exact.result["cached_from"] == str(first.id)
    assert other.result is not None and other.result["cached_from"] in {str(first.id), str(second.id), str(exact.id)}
    assert make(prompt="b", cache="any_seed").state is State.QUEUED


def test_images_of_another_seed_never_answer_by_the_seed_that_was_asked_for(
    engine: Engine, make: Make, done: Callable[..., Job]
) -> None:
    done(seed=1)
    assert make(seed=2, cache="any_seed").state is State.SUCCEEDED
    assert make(seed=2).state is State.QUEUED


def test_expired_artifacts_answer_nobody_not_even_before_the_sweep(
    engine: Engine, make: Make, done: Callable[..., Job]
) -> None:
    source = done(retain_seconds=60.0)
    cached = make(retain_seconds=3600.0)
    assert cached.state is State.SUCCEEDED
    an_hour = tables.jobs.c.finished_at - timedelta(hours=1, seconds=1)
    change(engine, source, finished_at=an_hour)
    second = make()
    assert second.result is not None and second.result["cached_from"] == str(cached.id)
    for job in (cached, second):
        do(engine, queue.delete, job.tenant_id, job.id)
    assert make().state is State.QUEUED
    assert do(engine, retention.expire_due, 10).jobs == 1


def test_a_full_tenant_still_gets_what_is_there_but_may_not_wait_for_more(
    engine: Engine, make: Make, make_tenant: Callable[..., Tenant], claim: Claim
) -> None:
    limited = make_tenant(max_queued=1)
    job = make(tenant_id=limited.id)
    with pytest.raises(LimitExceeded):
        # A follower waits, too.
        make(tenant_id=limited.id)
    claim()
    finish(engine, job)
    make(tenant_id=limited.id, seed=2)
    assert make(tenant_id=limited.id).state is State.SUCCEEDED


def test_a_retry_of_a_success_runs_again_and_one_of_a_failure_may_be_answered(
    engine: Engine, make: Make, claim: Claim, done: Callable[..., Job]
) -> None:
    failed = make()
    claim()
    do(engine, queue.fail, failed.id, 1, WRONG)
    source = done()
    again = do(engine, queue.retry, failed.tenant_id, failed.id)
    assert again.result["cached_from"] == str(source.id) and again.retried_from == failed.id
    assert do(engine, queue.retry, source.tenant_id, source.id).state is State.QUEUED


# --- An equal on its way ---


@pytest.fixture
def follower(make: Make) -> Callable[..., tuple[Job, Job]]:
    """A job and one that waits for its result."""

    def submit(**values: Any) -> tuple[Job, Job]:
        leader, job = make(), make(**values)
        assert job.leader_id == leader.id
        return leader, job

    return submit


def test_equal_jobs_run_once_and_all_get_the_result(
    engine: Engine, make: Make, claim: Claim, nothing_to_claim: Callable[[], bool], tenant: Tenant
) -> None:
    leader, second = make(), make()
    claim()
    third, other = make(), make(seed=3, cache="any_seed")
    assert nothing_to_claim()
    ended = finish(engine, leader)
    assert set(ended.answered) == {second.id, third.id, other.id}
    for job in (second, third, other):
        now = look(engine, job)
        assert (now.state, now.leader_id, now.attempt) == (State.SUCCEEDED, None, 0)
        assert now.result is not None and now.result["cached_from"] == str(leader.id)
        assert keys(engine, job) == [key_of(leader)]
        assert told(engine, job) == ["queued", "succeeded"]
    assert used(engine, tenant) == (4, 3, 1)
    # The image of another seed does not go under its own.
    assert make(seed=3).state is State.QUEUED


def test_canceling_the_first_lets_the_next_run_and_the_others_wait_for_it(
    engine: Engine, make: Make, claim: Claim
) -> None:
    leader, low, high, other = make(), make(priority=3), make(priority=8), make(priority=9, seed=2, cache="any_seed")
    do(engine, queue.cancel, leader.tenant_id, leader.id)
    # Not the best-ranked: it would make images of another seed than the two others want.
    assert [look(engine, job).leader_id for job in (low, high, other)] == [high.id, None, high.id]
    assert claim().id == high.id
    finish(engine, high)
    assert {look(engine, job).state for job in (low, other)} == {State.SUCCEEDED}
    assert look(engine, leader).state is State.CANCELED


@pytest.mark.parametrize("how", ["fail", "reap", "expire"])
def test_a_leader_that_ends_without_a_result_is_followed_by_the_next(
    engine: Engine, make: Make, claim: Claim, how: str
) -> None:
    leader = make(max_attempts=1, deadline_seconds=3600.0)
    first, second = make(), make()
    past = sa.func.clock_timestamp() - timedelta(seconds=1)
    if how == "expire":
        change(engine, leader, expires_at=past)
        do(engine, queue.expire)
    else:
        claim()
    if how == "fail":
        do(engine, queue.fail, leader.id, 1, WRONG)
    if how == "reap":
        change(engine, leader, lease_expires_at=past)
        do(engine, queue.reap)
    assert look(engine, leader).state.terminal
    assert [look(engine, job).leader_id for job in (first, second)] == [None, first.id]
    assert claim().id == first.id
    finish(engine, first)
    assert look(engine, second).state is State.SUCCEEDED


def test_a_leader_that_is_given_back_keeps_its_followers(
    engine: Engine, follower: Callable[..., tuple[Job, Job]], claim: Claim
) -> None:
    leader, job = follower()
    claim()
    do(engine, queue.release, leader.id, 1)
    assert look(engine, job).leader_id == leader.id
    claim()
    finish(engine, leader, epoch=2)
    assert look(engine, job).state is State.SUCCEEDED


def test_a_follower_ends_alone(engine: Engine, make: Make, claim: Claim, nothing_to_claim: Callable[[], bool]) -> None:
    leader, canceled, expired, left = make(), make(), make(deadline_seconds=3600.0), make()
    do(engine, queue.cancel, canceled.tenant_id, canceled.id)
    change(engine, expired, expires_at=sa.func.clock_timestamp() - timedelta(seconds=1))
    assert [job.id for job in do(engine, queue.expire)] == [expired.id]
    assert claim().id == leader.id and nothing_to_claim()
    assert finish(engine, leader).answered == (left.id,)
    assert [look(engine, job).state for job in (canceled, expired)] == [State.CANCELED, State.EXPIRED]
    assert do(engine, queue.retry, canceled.tenant_id, canceled.id).state is State.SUCCEEDED


def test_whoever_waits_for_a_job_that_runs_has_met_his_deadline_until_that_fails(
    engine: Engine, follower: Callable[..., tuple[Job, Job]], claim: Claim
) -> None:
    leader, job = follower(deadline_seconds=3600.0)
    claim()
    change(engine, job, expires_at=sa.func.clock_timestamp() - timedelta(seconds=1))
    assert do(engine, queue.expire) == []
    do(engine, queue.fail, leader.id, 1, WRONG)
    assert [one.id for one in do(engine, queue.expire)] == [job.id]


def test_an_urgent_follower_lifts_its_leader(engine: Engine, make: Make, claim: Claim) -> None:
    leader = make(priority=2)
    make(seed=9, priority=5)
    make(priority=9)
    assert claim().id == leader.id
    # Nor does it fall back when it has to wait for a moment.
    do(engine, queue.fail, leader.id, 1, BROKEN, 0.0)
    assert claim().id == leader.id


def test_an_urgent_follower_of_a_job_that_runs_lifts_it_when_that_is_given_back(
    engine: Engine, make: Make, claim: Claim
) -> None:
    leader = make(priority=2)
    claim()
    make(priority=9)
    make(seed=9, priority=5)
    do(engine, queue.release, leader.id, 1)
    assert claim().id == leader.id


def test_a_new_job_runs_instead_of_one_that_waits_out_a_backoff_and_answers_it(
    engine: Engine, make: Make, claim: Claim
) -> None:
    old, waiting = make(priority=9), make()
    claim()
    do(engine, queue.fail, old.id, 1, BROKEN, 3600.0)
    new = make(priority=1)
    assert [look(engine, job).leader_id for job in (old, waiting, new)] == [new.id, new.id, None]
    # Nor is the wait of those before it longer for its low priority.
    make(seed=5, priority=5)
    assert claim().id == new.id
    finish(engine, new)
    assert {look(engine, job).state for job in (old, waiting)} == {State.SUCCEEDED}


def test_one_of_another_seed_does_not_run_instead_of_one_that_waits_out_a_backoff(
    engine: Engine, make: Make, claim: Claim
) -> None:
    old = make()
    claim()
    do(engine, queue.fail, old.id, 1, BROKEN, 3600.0)
    new = make(seed=2, cache="any_seed")
    assert [look(engine, job).leader_id for job in (old, new)] == [None, None]
    assert claim().id == new.id


def test_a_job_that_waits_out_a_backoff_is_promoted_after_those_that_can_run(
    engine: Engine, make: Make, claim: Claim
) -> None:
    old = make(priority=9)
    claim()
    do(engine, queue.fail, old.id, 1, BROKEN, 3600.0)
    new, next_one = make(priority=1), make(priority=0)
    do(engine, queue.cancel, new.tenant_id, new.id)
    assert [look(engine, job).leader_id for job in (old, next_one)] == [next_one.id, None]


def test_whoever_is_answered_has_its_own_webhook_told(engine: Engine, make: Make, claim: Claim) -> None:
    leader = make()
    waited = make(webhook={"url": "https://example.org/waited"})
    claim()
    finish(engine, leader)
    found = make(webhook={"url": "https://example.org/found"})
    table = tables.webhook_deliveries
    with transaction(engine) as conn:
        told = conn.execute(sa.select(table.c.job_id, table.c.type).order_by(table.c.id)).all()
    assert told == [(waited.id, "job.succeeded"), (found.id, "job.succeeded")]


# --- A running leader is canceled ---


def test_a_canceled_leader_is_worked_on_for_those_that_wait_and_keeps_nothing(
    engine: Engine, make: Make, claim: Claim, tenant: Tenant
) -> None:
    leader, heir, second = make(), make(), make()
    claim()
    assert do(engine, queue.cancel, leader.tenant_id, leader.id).state is State.CANCELING
    assert do(engine, queue.look, leader.id, 1) is State.RUNNING
    assert do(engine, queue.heartbeat, leader.id, 1, 60.0) is State.RUNNING
    third = make()
    assert third.leader_id == leader.id
    ended = finish(engine, leader)
    assert (ended.state, ended.result, keys(engine, leader)) == (State.CANCELED, None, [])
    assert set(ended.answered) == {heir.id, second.id, third.id}
    assert look(engine, heir).result == {"seconds": 1.0}
    assert (look(engine, second).result or {})["cached_from"] == str(heir.id)
    assert keys(engine, heir) == keys(engine, third) == [key_of(leader)]
    assert used(engine, tenant) == (4, 2, 1)
    assert make().state is State.SUCCEEDED


def test_a_canceled_leader_stops_when_the_last_of_its_followers_goes(
    engine: Engine, follower: Callable[..., tuple[Job, Job]], make: Make, claim: Claim
) -> None:
    leader, job = follower()
    claim()
    do(engine, queue.cancel, leader.tenant_id, leader.id)
    do(engine, queue.cancel, job.tenant_id, job.id)
    assert do(engine, queue.look, leader.id, 1) is State.CANCELING
    assert make().leader_id is None
    with pytest.raises(CancelRequested):
        finish(engine, leader)
    assert do(engine, queue.acknowledge_cancel, leader.id, 1).state is State.CANCELED


@pytest.mark.parametrize("how", ["fail", "release", "acknowledge_cancel"])
def test_what_a_canceled_leader_does_not_finish_is_run_by_the_next(
    engine: Engine, follower: Callable[..., tuple[Job, Job]], claim: Claim, how: str
) -> None:
    leader, job = follower()
    claim()
    do(engine, queue.cancel, leader.tenant_id, leader.id)
    arguments = [BROKEN, 10.0] if how == "fail" else []
    assert do(engine, getattr(queue, how), leader.id, 1, *arguments).state is State.CANCELED
    assert claim().id == job.id


def test_images_that_a_canceled_leader_made_for_another_seed_keep_no_key(
    engine: Engine, make: Make, claim: Claim
) -> None:
    leader, other = make(seed=1), make(seed=2, cache="any_seed")
    claim()
    do(engine, queue.cancel, leader.tenant_id, leader.id)
    finish(engine, leader)
    assert look(engine, other).state is State.SUCCEEDED
    assert make(seed=2).state is State.QUEUED
    assert make(seed=4, cache="any_seed").state is State.SUCCEEDED


# --- At the same moment ---


@pytest.fixture
def paused(engine: Engine) -> Iterator[Callable[..., threading.Thread]]:
    """``paused(action, *arguments)``: runs it in a thread of its own, which this waits for at the end."""
    threads: list[threading.Thread] = []

    def start(action: Callable[..., Any], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=do, args=(engine, action, *arguments))
        threads.append(thread)
        thread.start()
        return thread

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def waits(engine: Engine, eventually: Callable[..., Any]) -> None:
    """Returns once some transaction waits for another."""
    blocked = sa.text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    eventually(lambda: do(engine, lambda conn: conn.execute(blocked).scalar_one()))


def new(job: Job, **values: Any) -> queue.NewJob:
    return queue.NewJob(
        tenant_id=job.tenant_id,
        kind=job.kind,
        family=job.family,
        model=job.model,
        spec=job.spec,
        cache_key=job.cache_key,
        any_seed_key=job.any_seed_key,
        **values,
    )


def test_of_equal_jobs_that_are_submitted_at_once_one_runs(engine: Engine, make: Make, make_job: Make) -> None:
    made: list[Job] = []
    gate = threading.Barrier(8)

    def submit(number: int) -> None:
        gate.wait()
        made.append(make(seed=1 if number % 2 else number, cache="use" if number % 2 else "any_seed"))

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 8
    leaders = {job.id for job in made if job.leader_id is None}
    # One of each seed at most; those that take any seed wait for whoever was first.
    assert 1 <= len(leaders) <= 2 and all(job.leader_id in leaders | {None} for job in made)


def test_a_job_that_meets_the_end_of_its_leader_is_answered(
    engine: Engine, make: Make, claim: Claim, paused: Callable[..., threading.Thread], eventually: Callable[..., Any]
) -> None:
    leader = make()
    claim()
    late: list[Job] = []
    with transaction(engine) as conn:
        queue.finish(conn, leader.id, 1, outcome(leader))
        thread = paused(lambda own: late.append(queue.submit(own, new(leader))))
        waits(engine, eventually)
    thread.join(30)
    assert late[0].state is State.SUCCEEDED and keys(engine, late[0]) == [key_of(leader)]


def test_a_job_that_meets_the_failure_of_its_leader_waits_for_the_next(
    engine: Engine, make: Make, claim: Claim, paused: Callable[..., threading.Thread], eventually: Callable[..., Any]
) -> None:
    leader, heir = make(), make()
    claim()
    late: list[Job] = []
    with transaction(engine) as conn:
        queue.fail(conn, leader.id, 1, WRONG)
        thread = paused(lambda own: late.append(queue.submit(own, new(leader))))
        waits(engine, eventually)
    thread.join(30)
    assert late[0].leader_id == heir.id


def test_the_end_of_a_leader_waits_for_a_job_that_is_just_joining(
    engine: Engine, make: Make, claim: Claim, paused: Callable[..., threading.Thread], eventually: Callable[..., Any]
) -> None:
    leader = make()
    claim()
    with transaction(engine) as conn:
        job = queue.submit(conn, new(leader))
        thread = paused(queue.finish, leader.id, 1, outcome(leader))
        waits(engine, eventually)
    thread.join(30)
    assert job.leader_id == leader.id and look(engine, job).state is State.SUCCEEDED


def test_heartbeats_pass_a_job_that_is_just_joining(engine: Engine, make: Make, claim: Claim) -> None:
    leader = make()
    claim()
    with transaction(engine) as conn:
        queue.submit(conn, new(leader))
        assert do(engine, queue.heartbeat, leader.id, 1, 60.0) is State.RUNNING


def test_a_deletion_waits_for_a_job_that_is_just_answered_and_then_spares_the_objects(
    engine: Engine, done: Callable[..., Job], eventually: Callable[..., Any]
) -> None:
    source, doomed = done(), list[Any]()
    thread = threading.Thread(target=lambda: doomed.append(do(engine, queue.delete, source.tenant_id, source.id)))
    with transaction(engine) as conn:
        job = queue.submit(conn, new(source))
        thread.start()
        waits(engine, eventually)
    thread.join(30)
    assert job.state is State.SUCCEEDED and doomed == [[]]
    assert keys(engine, job) == [key_of(source)]


def test_a_job_that_meets_the_deletion_of_its_source_runs(
    engine: Engine, done: Callable[..., Job], paused: Callable[..., threading.Thread], eventually: Callable[..., Any]
) -> None:
    source, late = done(), list[Job]()
    with transaction(engine) as conn:
        assert queue.delete(conn, source.tenant_id, source.id) == [key_of(source)]
        thread = paused(lambda own: late.append(queue.submit(own, new(source))))
        waits(engine, eventually)
    thread.join(30)
    assert (late[0].state, late[0].leader_id) == (State.QUEUED, None)


def test_a_job_that_meets_the_expiry_of_its_source_runs_and_expiry_passes_one_that_is_just_answered(
    engine: Engine, done: Callable[..., Job], paused: Callable[..., threading.Thread], eventually: Callable[..., Any]
) -> None:
    source, late = done(), list[Job]()
    change(engine, source, finished_at=tables.jobs.c.finished_at - timedelta(hours=1))
    with transaction(engine) as conn:
        assert queue.submit(conn, new(source)).state is State.SUCCEEDED
        assert do(engine, retention.expire_older, 60.0, 10).found == 0
        conn.rollback()
    with transaction(engine) as conn:
        assert retention.expire_older(conn, 60.0, 10).objects == [key_of(source)]
        thread = paused(lambda own: late.append(queue.submit(own, new(source))))
        waits(engine, eventually)
    thread.join(30)
    assert (late[0].state, late[0].leader_id) == (State.QUEUED, None)


def test_a_follower_that_is_canceled_while_its_leader_ends_ends_once(
    engine: Engine,
    make: Make,
    claim: Claim,
    paused: Callable[..., threading.Thread],
    eventually: Callable[..., Any],
) -> None:
    leader, goes, stays = make(), make(), make()
    claim()
    with transaction(engine) as conn:
        queue.cancel(conn, goes.tenant_id, goes.id)
        thread = paused(queue.finish, leader.id, 1, outcome(leader))
        waits(engine, eventually)
    thread.join(30)
    assert [look(engine, job).state for job in (goes, stays)] == [State.CANCELED, State.SUCCEEDED]
    assert told(engine, goes) == ["queued", "canceled"] and keys(engine, goes) == []


def test_the_next_in_line_is_chosen_among_those_that_are_left(
    engine: Engine,
    make: Make,
    paused: Callable[..., threading.Thread],
    eventually: Callable[..., Any],
) -> None:
    leader, goes, stays = make(), make(priority=9), make()
    with transaction(engine) as conn:
        queue.cancel(conn, goes.tenant_id, goes.id)
        thread = paused(queue.cancel, leader.tenant_id, leader.id)
        waits(engine, eventually)
    thread.join(30)
    assert (look(engine, stays).leader_id, look(engine, stays).state) == (None, State.QUEUED)
    assert look(engine, goes).state is State.CANCELED


def test_a_worker_may_claim_a_leader_that_a_job_is_just_joining_or_comes_back_for_it(
    engine: Engine, make: Make, claim: Claim, make_worker: Callable[..., UUID]
) -> None:
    leader, worker = make(priority=2), make_worker(QUEUES)
    with transaction(engine) as conn:
        job = queue.submit(conn, new(leader, priority=9))
        taken = do(engine, queue.claim, worker, QUEUES, 60.0)
    taken = taken or do(engine, queue.claim, worker, QUEUES, 60.0)
    assert taken.id == leader.id
    finish(engine, leader)
    assert look(engine, job).state is State.SUCCEEDED


@pytest.mark.parametrize(
    ("statement", "index"),
    [(request_cache._BY_KEY, "jobs_cache_idx"), (request_cache._BY_ANY_SEED, "jobs_any_seed_idx")],
    ids=["use", "any_seed"],
)
def test_a_look_goes_through_an_index_in_its_order(
    engine: Engine, tenant: Tenant, statement: sa.TextClause, index: str
) -> None:
    with transaction(engine) as conn:
        # An empty table is read whole, whatever there is.
        conn.execute(sa.text("SET LOCAL enable_seqscan = off"))
        conn.execute(sa.text("SET LOCAL enable_bitmapscan = off"))
        values = {"tenant_id": tenant.id, "key": "k"}
        plan = "\n".join(conn.execute(sa.text(f"EXPLAIN {statement.text}"), values).scalars())
    assert f"Index Scan Backward using {index}" in plan and f"Index Scan using {index}" in plan, plan
    assert "Sort" not in plan, plan
