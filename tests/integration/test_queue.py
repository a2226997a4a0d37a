"""The life of a job on a real Postgres: every transition, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import lookup, queue, registry, tables
from calotype.database import transaction
from calotype.errors import CancelRequested, Conflict, LeaseLost, LimitExceeded, NotFound
from calotype.jobs import Artifact, Family, Job, JobError, Kind, Progress, State
from calotype.registry import ModelFile, NewVersion
from calotype.tenants import Tenant

QUEUES = ("diffusion.generate", "diffusion.train")
BROKEN = JobError(code="dependency_down", title="Dependency down", detail="the store is away", retryable=True)
WRONG = JobError(code="bad_input", title="Bad input", detail="no such image", retryable=False)


@pytest.fixture
def claim(engine: Engine, make_worker: Callable[..., UUID]) -> Callable[..., Job | None]:
    worker = make_worker(QUEUES)

    def take(queues: tuple[str, ...] = QUEUES, lease: float = 60.0) -> Job | None:
        with transaction(engine) as conn:
            return queue.claim(conn, worker, queues, lease)

    return take


@pytest.fixture
def running(make_job: Callable[..., Job], claim: Callable[..., Job | None]) -> Job:
    make_job()
    job = claim()
    assert job is not None
    return job


def _do(engine: Engine, action: Callable[..., Any], *arguments: Any) -> Any:
    with transaction(engine) as conn:
        return action(conn, *arguments)


def _lapse(engine: Engine, job: Job) -> None:
    with transaction(engine) as conn:
        lapsed = sa.func.now() - timedelta(seconds=1)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(lease_expires_at=lapsed))


def _artifact(job: Job, name: str = "image-0.png") -> Artifact:
    return Artifact(
        name=name,
        object_key=f"tenants/t/jobs/{job.id}/{job.epoch}/{name}",
        content_type="image/png",
        bytes=3,
        sha256="0" * 64,
        width=64,
        height=64,
        seed=7,
    )


def test_a_submitted_job_is_queued_with_its_whole_spec(make_job: Callable[..., Job], tenant: Tenant) -> None:
    job = make_job(priority=7, deadline_seconds=60.0, metadata={"who": "me"})
    assert (job.state, job.queue, job.attempt, job.epoch) == (State.QUEUED, "diffusion.generate", 0, 0)
    assert job.spec["input"]["prompt"] == "a logo"
    assert job.expires_at == job.created_at + timedelta(seconds=60)
    assert job.metadata == {"who": "me"}


def test_a_claim_takes_a_lease_and_counts_attempt_and_epoch(running: Job) -> None:
    assert (running.state, running.attempt, running.epoch) == (State.RUNNING, 1, 1)
    assert running.lease_expires_at is not None and running.started_at is not None
    assert timedelta(seconds=59) < running.lease_expires_at - running.started_at < timedelta(seconds=61)


def test_nothing_is_claimed_from_queues_that_the_worker_does_not_serve(
    make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    make_job()
    assert claim(("diffusion.train",)) is None
    assert claim(()) is None


def test_jobs_of_one_priority_are_claimed_in_the_order_of_their_submission(
    make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    submitted = [make_job().id for _ in range(4)]
    taken = [claim() for _ in range(4)]
    assert [job.id for job in taken if job] == submitted


def test_a_higher_priority_goes_first_and_a_long_wait_makes_up_for_a_lower_one(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    patient, low, high = make_job(priority=5), make_job(priority=5), make_job(priority=6)
    with transaction(engine) as conn:
        earlier = tables.jobs.c.rank - timedelta(minutes=2)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == patient.id).values(rank=earlier))
    taken = [claim() for _ in range(3)]
    assert [job.id for job in taken if job] == [patient.id, high.id, low.id]


def test_the_best_job_is_taken_whichever_queue_it_stands_in(
    make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    make_job()
    urgent = make_job(kind=Kind.TRAIN, priority=9)
    job = claim()
    assert job is not None and job.id == urgent.id


def test_no_more_jobs_wait_than_the_tenant_may_have_even_when_submitted_at_once(
    engine: Engine, make_tenant: Callable[..., Tenant], make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    limited = make_tenant(max_queued=3)
    refused: list[LimitExceeded] = []

    def submit() -> None:
        try:
            make_job(tenant_id=limited.id)
        except LimitExceeded as exc:
            refused.append(exc)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5 and refused[0].retry_after > 0
    assert claim() is not None
    make_job(tenant_id=limited.id)


def test_many_workers_at_once_never_take_the_same_job(
    engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    submitted = {make_job().id for _ in range(30)}
    taken: list[UUID] = []

    def work(worker: UUID) -> None:
        while (job := _do(engine, queue.claim, worker, QUEUES, 60.0)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(make_worker(QUEUES),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 30 and set(taken) == submitted


def test_a_heartbeat_renews_the_lease(engine: Engine, running: Job) -> None:
    _lapse(engine, running)
    assert _do(engine, queue.heartbeat, running.id, 1, 60.0) is State.RUNNING
    assert _do(engine, queue.reap) == []


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize(
    "write",
    [
        lambda conn, job, epoch: queue.heartbeat(conn, job.id, epoch, 60.0),
        lambda conn, job, epoch: queue.look(conn, job.id, epoch),
        lambda conn, job, epoch: queue.progress(
            conn, job.id, epoch, Progress(fraction=0.5, step=1, total=2, stage="sampling")
        ),
        lambda conn, job, epoch: queue.checkpoint(conn, job.id, epoch, {"step": 1}),
        lambda conn, job, epoch: queue.finish(conn, job.id, epoch, queue.Outcome(result={"ok": True})),
        lambda conn, job, epoch: queue.fail(conn, job.id, epoch, WRONG),
        lambda conn, job, epoch: queue.release(conn, job.id, epoch),
        lambda conn, job, epoch: queue.acknowledge_cancel(conn, job.id, epoch),
    ],
    ids=["heartbeat", "look", "progress", "checkpoint", "finish", "fail", "release", "acknowledge_cancel"],
)
def test_a_stale_epoch_changes_nothing(
    engine: Engine, tenant: Tenant, running: Job, write: Callable[..., Any], epoch: int
) -> None:
    with pytest.raises(LeaseLost):
        _do(engine, write, running, epoch)
    assert _do(engine, lookup.get, tenant.id, running.id) == running


def test_a_finished_job_publishes_result_artifacts_and_model_together(
    engine: Engine, tenant: Tenant, running: Job
) -> None:
    version = NewVersion(
        name="my-brand",
        tenant_id=tenant.id,
        family=Family.DIFFUSION,
        architecture="lora",
        base="starter-diffusion@1",
        files=[ModelFile(path="w.safetensors", object_key="k", bytes=1, sha256="b" * 64)],
        source={"type": "train", "job": str(running.id)},
        job_id=running.id,
    )
    outcome = queue.Outcome(result={"seconds": 1.0}, artifacts=[_artifact(running)], model=version)
    job = _do(engine, queue.finish, running.id, 1, outcome)
    assert job.state is State.SUCCEEDED and job.finished_at is not None and job.lease_expires_at is None
    assert job.result == {"seconds": 1.0, "model": "my-brand@1"}
    assert _do(engine, lookup.artifacts_of, [job.id]) == {job.id: [_artifact(running)]}
    assert _do(engine, registry.find_version, tenant.id, "my-brand").ref == "my-brand@1"


def test_a_result_that_cannot_be_written_whole_is_not_written_at_all(
    engine: Engine, tenant: Tenant, running: Job
) -> None:
    twice = queue.Outcome(result={}, artifacts=[_artifact(running), _artifact(running)])
    with pytest.raises(sa.exc.IntegrityError):
        _do(engine, queue.finish, running.id, 1, twice)
    assert _do(engine, lookup.get, tenant.id, running.id).state is State.RUNNING
    assert _do(engine, lookup.artifacts_of, [running.id]) == {}


def test_a_terminal_state_never_changes(engine: Engine, tenant: Tenant, running: Job) -> None:
    ended = _do(engine, queue.finish, running.id, 1, queue.Outcome(result={"n": 1}))
    for late in (queue.release, queue.acknowledge_cancel):
        with pytest.raises(LeaseLost):
            _do(engine, late, running.id, 1)
    assert _do(engine, queue.cancel, tenant.id, running.id) == ended
    assert _do(engine, queue.reap) == []


def test_a_final_failure_says_why(engine: Engine, running: Job) -> None:
    job = _do(engine, queue.fail, running.id, 1, WRONG, 5.0)
    assert job.state is State.FAILED and job.error == WRONG


def test_a_retryable_failure_waits_out_its_backoff_and_ends_after_the_last_attempt(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    made = make_job(max_attempts=2)
    first = claim()
    assert first is not None
    job = _do(engine, queue.fail, made.id, 1, BROKEN, 600.0)
    assert job.state is State.QUEUED and job.error is None
    assert job.available_at - job.created_at > timedelta(seconds=590)
    assert claim() is None
    with transaction(engine) as conn:
        conn.execute(tables.jobs.update().values(available_at=sa.func.now()))
    second = claim()
    assert second is not None and (second.attempt, second.epoch) == (2, 2)
    assert _do(engine, queue.fail, made.id, 2, BROKEN, 1.0).state is State.FAILED


def test_an_error_with_a_nul_character_is_still_written(engine: Engine, running: Job) -> None:
    odd = JobError(code="bad_input", title="Bad input", detail="a\x00b" + "x" * 9000, retryable=False)
    job = _do(engine, queue.fail, running.id, 1, odd)
    assert job.error is not None and "\x00" not in job.error.detail and len(job.error.detail) < 5000


def test_a_release_costs_no_attempt_and_keeps_place_and_checkpoint(
    engine: Engine, running: Job, claim: Callable[..., Job | None]
) -> None:
    _do(engine, queue.checkpoint, running.id, 1, {"step": 3})
    released = _do(engine, queue.release, running.id, 1)
    assert (released.state, released.attempt, released.worker_id) == (State.QUEUED, 0, None)
    again = claim()
    assert again is not None and (again.attempt, again.epoch) == (1, 2)
    assert again.checkpoint == {"step": 3}


def test_a_queued_job_is_canceled_at_once_and_canceling_twice_is_harmless(
    engine: Engine, tenant: Tenant, make_job: Callable[..., Job]
) -> None:
    job = make_job()
    first = _do(engine, queue.cancel, tenant.id, job.id)
    assert first.state is State.CANCELED
    assert _do(engine, queue.cancel, tenant.id, job.id) == first


def test_a_running_job_is_canceled_through_its_worker(engine: Engine, tenant: Tenant, running: Job) -> None:
    assert _do(engine, queue.cancel, tenant.id, running.id).state is State.CANCELING
    assert _do(engine, queue.heartbeat, running.id, 1, 60.0) is State.CANCELING
    assert _do(engine, queue.look, running.id, 1) is State.CANCELING
    with pytest.raises(CancelRequested):
        _do(engine, queue.finish, running.id, 1, queue.Outcome(result={}))
    assert _do(engine, queue.acknowledge_cancel, running.id, 1).state is State.CANCELED


def test_a_job_that_ended_names_no_checkpoint_so_that_its_objects_are_collected(
    engine: Engine, tenant: Tenant, running: Job
) -> None:
    _do(engine, queue.checkpoint, running.id, 1, {"step": 3})
    assert _do(engine, queue.fail, running.id, 1, WRONG).checkpoint is None


@pytest.mark.parametrize("ending", ["fail", "release", "reap"])
def test_a_job_being_canceled_ends_canceled_however_its_worker_leaves_it(
    engine: Engine, tenant: Tenant, running: Job, ending: str
) -> None:
    _do(engine, queue.cancel, tenant.id, running.id)
    if ending == "fail":
        _do(engine, queue.fail, running.id, 1, BROKEN, 1.0)
    elif ending == "release":
        _do(engine, queue.release, running.id, 1)
    else:
        _lapse(engine, running)
        _do(engine, queue.reap)
    assert _do(engine, lookup.get, tenant.id, running.id).state is State.CANCELED


def test_nobody_acknowledges_a_cancel_that_was_not_asked_for(engine: Engine, running: Job) -> None:
    with pytest.raises(Conflict):
        _do(engine, queue.acknowledge_cancel, running.id, 1)


def test_a_lapsed_lease_gives_the_job_back_and_fences_its_old_worker(
    engine: Engine, running: Job, claim: Callable[..., Job | None]
) -> None:
    _lapse(engine, running)
    assert [job.state for job in _do(engine, queue.reap)] == [State.QUEUED]
    again = claim()
    assert again is not None and (again.attempt, again.epoch) == (2, 2)
    with pytest.raises(LeaseLost):
        _do(engine, queue.finish, running.id, 1, queue.Outcome(result={}))
    assert _do(engine, queue.finish, running.id, 2, queue.Outcome(result={})).state is State.SUCCEEDED


def test_a_job_that_loses_its_last_worker_fails_with_a_reason(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    make_job(max_attempts=1)
    job = claim()
    assert job is not None
    _lapse(engine, job)
    (reaped,) = _do(engine, queue.reap)
    assert reaped.state is State.FAILED and reaped.error is not None and reaped.error.code == "worker_lost"


def test_a_live_lease_is_not_reaped(engine: Engine, running: Job) -> None:
    assert _do(engine, queue.reap) == []


def test_a_job_expires_when_its_deadline_passes_before_it_started(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    late, fresh = make_job(deadline_seconds=1.0), make_job(deadline_seconds=600.0)
    with transaction(engine) as conn:
        past = sa.func.now() - timedelta(seconds=1)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == late.id).values(expires_at=past))
    taken = claim()
    assert taken is not None and taken.id == fresh.id
    assert claim() is None
    (expired,) = _do(engine, queue.expire)
    assert expired.id == late.id and expired.state is State.EXPIRED
    assert expired.error is not None and expired.error.code == "deadline_passed"


def test_a_job_that_started_in_time_does_not_expire_when_it_is_released(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    made = make_job(deadline_seconds=600.0)
    assert claim() is not None
    _do(engine, queue.release, made.id, 1)
    with transaction(engine) as conn:
        conn.execute(tables.jobs.update().values(expires_at=sa.func.now() - timedelta(seconds=1)))
    assert _do(engine, queue.expire) == []
    assert claim() is not None


def test_a_retry_is_a_new_job_with_the_same_spec_and_asking_twice_gives_the_same_one(
    engine: Engine, tenant: Tenant, running: Job
) -> None:
    with pytest.raises(Conflict):
        _do(engine, queue.retry, tenant.id, running.id)
    _do(engine, queue.fail, running.id, 1, WRONG)
    new = _do(engine, queue.retry, tenant.id, running.id)
    assert new.id != running.id and new.retried_from == running.id
    assert (new.spec, new.state, new.attempt) == (running.spec, State.QUEUED, 0)
    assert _do(engine, queue.retry, tenant.id, running.id).id == new.id


def test_another_tenant_sees_and_moves_nothing(
    engine: Engine, make_tenant: Callable[..., Tenant], running: Job
) -> None:
    stranger = make_tenant()
    for action in (queue.cancel, queue.retry, queue.delete, lookup.get):
        with pytest.raises(NotFound):
            _do(engine, action, stranger.id, running.id)
    assert _do(engine, lookup.list_jobs, stranger.id, lookup.JobFilter(), None, 10).items == []


def test_deleting_an_ended_job_gives_its_objects_and_a_live_one_is_refused(
    engine: Engine, tenant: Tenant, running: Job
) -> None:
    with pytest.raises(Conflict):
        _do(engine, queue.delete, tenant.id, running.id)
    _do(engine, queue.finish, running.id, 1, queue.Outcome(result={}, artifacts=[_artifact(running)]))
    assert _do(engine, queue.delete, tenant.id, running.id) == [_artifact(running).object_key]
    with pytest.raises(NotFound):
        _do(engine, lookup.get, tenant.id, running.id)


def test_a_job_whose_image_another_starts_from_is_not_deleted_before_that_has_ended(
    engine: Engine, tenant: Tenant, running: Job, make_job: Callable[..., Job]
) -> None:
    _do(engine, queue.finish, running.id, 1, queue.Outcome(result={}, artifacts=[_artifact(running)]))
    needing = make_job(spec={"input": {"init_image": f"{running.id}/image-0.png"}})
    with pytest.raises(Conflict, match=str(needing.id)):
        _do(engine, queue.delete, tenant.id, running.id)
    _do(engine, queue.cancel, tenant.id, needing.id)
    assert _do(engine, queue.delete, tenant.id, running.id)


def test_a_list_pages_through_every_job_once_newest_first(
    engine: Engine, tenant: Tenant, make_job: Callable[..., Job]
) -> None:
    made = [make_job().id for _ in range(7)]
    seen: list[UUID] = []
    cursor: str | None = None
    while True:
        page = _do(engine, lookup.list_jobs, tenant.id, lookup.JobFilter(), cursor, 3)
        seen += [job.id for job in page.items]
        if not page.has_more:
            break
        cursor = str(page.items[-1].id)
    assert seen == made[::-1]


def test_a_list_is_filtered_by_what_is_asked(
    engine: Engine, tenant: Tenant, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    generate, train = make_job(model="a@1"), make_job(kind=Kind.TRAIN, model="b@2")
    claim()

    def ids(**wanted: Any) -> set[UUID]:
        page = _do(engine, lookup.list_jobs, tenant.id, lookup.JobFilter(**wanted), None, 10)
        return {job.id for job in page.items}

    assert ids(states=(State.RUNNING,)) == {generate.id}
    assert ids(kind=Kind.TRAIN) == {train.id}
    assert ids(model="b") == ids(model="b@2") == {train.id}
    assert ids(model="b@1") == ids(family=Family.GAN) == set()
    assert ids(since=train.created_at) == {train.id}


def test_queue_stats_count_what_waits_and_what_runs(
    engine: Engine, make_job: Callable[..., Job], claim: Callable[..., Job | None]
) -> None:
    for _ in range(3):
        make_job()
    claim()
    held_back = make_job()
    with transaction(engine) as conn:
        later = sa.func.now() + timedelta(hours=1)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == held_back.id).values(available_at=later))
    stats = {one.queue: one for one in _do(engine, lookup.queue_stats)}
    one = stats["diffusion.generate"]
    assert (one.depth, one.runnable, one.running, one.workers) == (3, 2, 1, 1)
    assert one.oldest_wait_seconds > 0
    assert stats["diffusion.benchmark"].depth == 0


def test_jobs_that_follow_another_wait_and_may_not_start(engine: Engine, make_job: Callable[..., Job]) -> None:
    equal = {"cache_key": "a" * 64, "any_seed_key": "b" * 64}
    for _ in range(3):
        make_job(**equal)
    (one,) = _do(engine, lookup.queue_stats, ["diffusion.generate"])
    assert (one.depth, one.runnable, one.at_least) == (3, 1, False)


def test_what_waits_is_counted_up_to_a_bound_and_says_so(
    engine: Engine, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "MOST_COUNTED", 3)
    first = make_job()
    make_job()
    (few,) = _do(engine, lookup.queue_stats, ["diffusion.generate"])
    assert (few.depth, few.runnable, few.at_least) == (2, 2, False)

    for _ in range(3):
        make_job()
    with transaction(engine) as conn:
        earlier = sa.func.now() - timedelta(hours=1)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == first.id).values(available_at=earlier))
    (many,) = _do(engine, lookup.queue_stats, ["diffusion.generate"])
    assert (many.depth, many.runnable, many.at_least) == (3, 3, True)
    # Of all, not of those that were counted.
    assert 3600 <= many.oldest_wait_seconds < 7200


def test_counting_what_waits_reads_an_index_of_its_own_alone(engine: Engine) -> None:
    values = {"queues": ["diffusion.generate"], "most": lookup.MOST_COUNTED}
    with transaction(engine) as conn:
        # A table of a few rows is read as a whole whatever indexes there are.
        conn.execute(sa.text("SET LOCAL enable_seqscan = off"))
        plan = conn.execute(sa.text(f"EXPLAIN {lookup._COUNTS.text}"), values).scalars().all()
    scans = [line for line in plan if " on jobs " in line]
    assert len(scans) == 5
    assert sum("Index Only Scan using jobs_waiting_idx" in line for line in scans) == 4
    assert not [line for line in plan if "Sort" in line]


def test_the_database_refuses_a_held_job_without_a_lease(engine: Engine, running: Job) -> None:
    with pytest.raises(sa.exc.IntegrityError, match="jobs_held_has_lease_check"):
        _do(engine, lambda conn: conn.execute(tables.jobs.update().values(lease_expires_at=None)))


def test_an_unknown_job_is_not_found(engine: Engine, tenant: Tenant) -> None:
    with pytest.raises(NotFound):
        _do(engine, lookup.get, tenant.id, uuid4())
