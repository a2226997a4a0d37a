"""What goes by itself goes whole, and takes nothing along that somebody else still has."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import lookup, queue, registry, retention, tables
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.errors import Conflict, DependencyDown, Invalid, NotFound
from calotype.init_images import check_init_image
from calotype.jobs import Family, Job, State
from calotype.registry import ModelFile, NewVersion
from calotype.settings import Settings
from worker import orphans
from worker.reconciler import Leadership, Reconciler

QUEUES = ("diffusion.generate",)
DAY = 86_400.0
#: Older than objects that are yet to be made: no margin.
AT_ONCE = -60.0

Done = Callable[..., Job]


@pytest.fixture
def done(engine: Engine, store: ObjectStore, make_job: Callable[..., Job], make_worker: Callable[..., UUID]) -> Done:
    """``done(ago=…, **NewJob fields)``: a job that ended so many seconds ago, with one image in the store."""
    worker = make_worker(QUEUES)

    def run(ago: float = 0.0, model: NewVersion | None = None, **values: Any) -> Job:
        submitted = make_job(priority=9, **values)
        with transaction(engine) as conn:
            job = queue.claim(conn, worker, QUEUES, 60.0)
            assert job is not None and job.id == submitted.id
            key = job_prefix(job.tenant_id, job.id, job.epoch) + "image-0.png"
            store.put_bytes(key, b"pixels")
            image = Artifact(name="image-0.png", object_key=key, content_type="image/png", bytes=6, sha256="0" * 64)
            queue.finish(conn, job.id, job.epoch, queue.Outcome(result={}, artifacts=[image], model=model))
            age(conn, job, ago)
        return look(engine, job)

    return run


@pytest.fixture
def sweep(engine: Engine, store: ObjectStore) -> Callable[..., int]:
    """``sweep(retain=None, keep=90 days)``"""

    def run(retain: float | None = None, keep: float = 90 * DAY) -> int:
        return retention.sweep(engine, store, retain_seconds=retain, keep_seconds=keep)

    return run


def age(conn: sa.Connection, job: Job, seconds: float) -> None:
    ended = tables.jobs.c.finished_at - timedelta(seconds=seconds)
    conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(finished_at=ended))


def look(engine: Engine, job: Job) -> Job:
    with transaction(engine) as conn:
        return lookup.get(conn, job.tenant_id, job.id)


def is_gone(engine: Engine, job: Job) -> bool:
    try:
        look(engine, job)
    except NotFound:
        return True
    return False


def artifacts(engine: Engine, job: Job) -> list[Artifact]:
    with transaction(engine) as conn:
        return lookup.artifacts_of(conn, [job.id]).get(job.id, [])


def objects(store: ObjectStore) -> set[str]:
    return {stored.key for stored in store.list_keys("tenants/")}


def key_of(job: Job) -> str:
    return f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"


def starts_from(job: Job) -> dict[str, Any]:
    """The spec of a job that starts from its image."""
    return {"kind": "generate", "input": {"prompt": "b", "init_image": f"{job.id}/image-0.png"}}


def test_artifacts_go_when_their_own_time_is_over_and_the_job_says_so(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int]
) -> None:
    over, not_yet, silent = done(ago=61, retain_seconds=60.0), done(retain_seconds=600.0), done(ago=80 * DAY)
    assert sweep() == 1
    now = look(engine, over)
    assert now.state is State.SUCCEEDED and now.result == {}
    assert now.artifacts_expired_at is not None and now.revision == over.revision + 1
    assert artifacts(engine, over) == [] and look(engine, not_yet).artifacts_expired_at is None
    assert objects(store) == {key_of(not_yet), key_of(silent)}
    assert sweep() == 0


def test_the_operators_time_is_for_jobs_that_name_none(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int]
) -> None:
    silent, longer = done(ago=2 * DAY), done(ago=2 * DAY, retain_seconds=3 * DAY)
    assert sweep(retain=3 * DAY) == 0
    assert sweep(retain=DAY) == 1
    assert look(engine, silent).artifacts_expired_at is not None
    assert objects(store) == {key_of(longer)}


def test_old_jobs_go_wholly_but_not_before_artifacts_that_were_promised_for_longer(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], make_job: Callable[..., Job]
) -> None:
    old, promised, young, waiting = done(ago=91 * DAY), done(ago=91 * DAY, retain_seconds=92 * DAY), done(), make_job()
    assert sweep() == 1
    assert is_gone(engine, old)
    assert [is_gone(engine, job) for job in (promised, young, waiting)] == [False, False, False]
    assert objects(store) == {key_of(promised), key_of(young)}
    with transaction(engine) as conn:
        age(conn, promised, 2 * DAY)
    # Its artifacts first, and the row with them: both are old.
    sweep()
    assert is_gone(engine, promised) and objects(store) == {key_of(young)}


def test_failed_and_canceled_jobs_are_forgotten_too_and_a_retry_of_one_stays(
    engine: Engine, make_job: Callable[..., Job], sweep: Callable[..., int]
) -> None:
    job = make_job()
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
        again = queue.retry(conn, job.tenant_id, job.id)
        age(conn, job, 91 * DAY)
    assert sweep() == 1
    assert is_gone(engine, job) and look(engine, again).retried_from is None


def test_more_jobs_than_one_batch_go_in_one_sweep(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    for _ in range(5):
        done(ago=61, retain_seconds=60.0)
    assert (sweep(), objects(store)) == (5, set())
    assert sweep(keep=1.0) == 5


def test_an_image_that_an_unfinished_job_starts_from_stays_until_that_has_ended(
    engine: Engine,
    store: ObjectStore,
    done: Done,
    sweep: Callable[..., int],
    make_job: Callable[..., Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Those that must stay do not stand in the way of those behind them.
    monkeypatch.setattr(retention, "BATCH", 1)
    needed, free = done(ago=91 * DAY, retain_seconds=DAY), done(ago=90.5 * DAY, retain_seconds=DAY)
    job = make_job(spec=starts_from(needed))
    sweep()
    assert look(engine, needed).artifacts_expired_at is None and objects(store) == {key_of(needed)}
    assert is_gone(engine, free)
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
    sweep()
    assert is_gone(engine, needed) and objects(store) == set()


def test_a_job_whose_images_have_expired_is_no_longer_one_to_start_from(
    engine: Engine, done: Done, sweep: Callable[..., int]
) -> None:
    job = done(ago=61, retain_seconds=60.0)
    sweep()
    with transaction(engine) as conn, pytest.raises(Invalid, match="were deleted at their time"):
        check_init_image(conn, job.tenant_id, f"{job.id}/image-0.png")


def test_an_object_stays_until_the_last_job_that_shows_it_has_gone(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], make_job: Callable[..., Job]
) -> None:
    keys = {"cache_key": "k", "any_seed_key": "a"}
    source = done(ago=61, retain_seconds=60.0, **keys)
    with transaction(engine) as conn:
        age(conn, source, -61)
    cached = make_job(retain_seconds=600.0, **keys)
    with transaction(engine) as conn:
        age(conn, source, 61)
    assert cached.state is State.SUCCEEDED and sweep() == 1
    assert artifacts(engine, source) == [] and objects(store) == {key_of(source)}
    # The collector of orphans finds nothing either.
    assert orphans.collect(engine, store, AT_ONCE) == 0
    with transaction(engine) as conn:
        assert queue.delete(conn, source.tenant_id, source.id) == []
        age(conn, cached, 601)
    assert orphans.collect(engine, store, AT_ONCE) == 0
    assert (sweep(), objects(store)) == (1, set())


def test_one_sweep_that_removes_all_that_share_an_object_removes_it(
    store: ObjectStore, engine: Engine, done: Done, sweep: Callable[..., int], make_job: Callable[..., Job]
) -> None:
    keys = {"cache_key": "k", "any_seed_key": "a"}
    jobs = [done(**keys), make_job(**keys), make_job(**keys)]
    with transaction(engine) as conn:
        for job in jobs:
            age(conn, job, 2 * DAY)
    assert (sweep(retain=DAY), objects(store)) == (3, set())


def test_a_crash_before_the_objects_are_deleted_leaves_them_to_the_collector(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = done(ago=61, retain_seconds=60.0)
    with monkeypatch.context() as patched:
        patched.setattr(store, "discard", lambda keys: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep()
    assert look(engine, job).artifacts_expired_at is not None and artifacts(engine, job) == []
    assert objects(store) == {key_of(job)}
    assert orphans.collect(engine, store, AT_ONCE) == 1 and objects(store) == set()


def test_a_store_that_is_away_does_not_stop_the_sweep(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(keys: object) -> None:
        raise DependencyDown("the store is away")

    done(ago=61, retain_seconds=60.0)
    with monkeypatch.context() as patched:
        patched.setattr(store, "delete", away)
        assert sweep() == 1
    assert orphans.collect(engine, store, AT_ONCE) == 1


def test_a_model_stays_when_the_job_that_made_it_goes_and_so_does_an_artifact_that_is_one_of_its_files(
    engine: Engine, store: ObjectStore, done: Done, sweep: Callable[..., int], make_job: Callable[..., Job]
) -> None:
    first = make_job()
    with transaction(engine) as conn:
        queue.cancel(conn, first.tenant_id, first.id)
    weights = f"{job_prefix(first.tenant_id, first.id, 1)}model/w.safetensors"
    store.put_bytes(weights, b"bytes")
    version = NewVersion(
        name="my-brand",
        tenant_id=first.tenant_id,
        family=Family.DIFFUSION,
        architecture="lora",
        files=[ModelFile(path="w.safetensors", object_key=weights, bytes=5, sha256="a" * 64)],
        source={"type": "train"},
    )
    job = done(ago=91 * DAY, model=version)
    with transaction(engine) as conn:
        shown = {"job_id": job.id, "name": "w.safetensors", "object_key": weights, "content_type": "x/y", "bytes": 5}
        conn.execute(tables.artifacts.insert().values(**shown, sha256="0" * 64, position=1))
    sweep()
    assert is_gone(engine, job) and objects(store) == {weights}
    with transaction(engine) as conn:
        assert registry.find_version(conn, job.tenant_id, "my-brand").digest == version.digest


def test_the_reconciler_that_leads_sweeps_by_its_settings(
    engine: Engine, store: ObjectStore, done: Done, settings: Settings
) -> None:
    expires, goes = done(ago=2 * DAY), done(ago=4 * DAY)
    own = dataclasses.replace(settings, retain_seconds=DAY, keep_jobs_seconds=3 * DAY)
    doorbell, leadership = Doorbell(own), Leadership(engine)
    reconciler = Reconciler(engine=engine, settings=own, store=store, doorbell=doorbell, leadership=leadership)
    reconciler.retire()
    assert len(objects(store)) == 2
    reconciler.round()
    reconciler.retire()
    assert look(engine, expires).artifacts_expired_at is not None and is_gone(engine, goes)
    assert objects(store) == set()
    leadership.give_up()
    doorbell.close()


# --- At the same moment ---


def test_a_job_that_is_just_starting_from_an_image_keeps_it(
    engine: Engine, done: Done, sweep: Callable[..., int], make_job: Callable[..., Job]
) -> None:
    source = done(ago=61, retain_seconds=60.0)
    with transaction(engine) as conn:
        # As a submission that names its image does first.
        check_init_image(conn, source.tenant_id, f"{source.id}/image-0.png")
        assert sweep() == 0
        queue.submit(
            conn,
            queue.NewJob(
                tenant_id=source.tenant_id,
                kind=source.kind,
                family=source.family,
                model=source.model,
                spec=starts_from(source),
            ),
        )
    assert sweep() == 0
    with transaction(engine) as conn, pytest.raises(Conflict):
        queue.delete(conn, source.tenant_id, source.id)


def test_what_a_sweep_has_found_is_asked_again_once_it_is_locked(
    engine: Engine, done: Done, make_job: Callable[..., Job]
) -> None:
    source, free = done(ago=61, retain_seconds=60.0), done(ago=61, retain_seconds=60.0)
    # Submitted after the sweep has looked, and before it has locked.
    make_job(spec=starts_from(source))
    with transaction(engine) as conn:
        assert retention._expire(conn, [source.id, free.id]).objects == [key_of(free)]
    assert len(artifacts(engine, source)) == 1


def test_two_sweeps_at_once_each_take_their_own(
    engine: Engine, store: ObjectStore, done: Done, monkeypatch: pytest.MonkeyPatch, sweep: Callable[..., int]
) -> None:
    monkeypatch.setattr(retention, "BATCH", 1)
    for _ in range(6):
        done(ago=61, retain_seconds=60.0)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(sweep())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # One that finds every row held goes home early; between them they have taken each row once.
    assert sum(counts) + sweep() == 6 and objects(store) == set()


# --- The plans: none of it reads every job there is ---


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (retention._DUE, "jobs_retained_idx"),
        (retention._DUE_BY_DEFAULT, "jobs_kept_idx"),
        (retention._OLD, "jobs_finished_idx"),
    ],
    ids=["due", "due_by_default", "old"],
)
def test_a_sweep_looks_through_an_index(engine: Engine, statement: sa.TextClause, index: str) -> None:
    with transaction(engine) as conn:
        # An empty table is read whole, whatever there is.
        conn.execute(sa.text("SET LOCAL enable_seqscan = off"))
        values = {"most": 100, "seconds": DAY}
        plan = conn.execute(sa.text(f"EXPLAIN {statement.text}"), values).scalars().all()
    for name in (index, "jobs_init_image_idx"):
        assert any(name in line for line in plan), "\n".join(plan)
