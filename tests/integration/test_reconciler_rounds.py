"""The reconciler's rounds on a real Postgres: one leads, lapsed leases are reaped, forgotten queues are rung for."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from postgres_outage import Outage
from sqlalchemy import Engine

from calotype import events, queue, tables
from calotype.artifacts import ObjectStore, model_upload_prefix
from calotype.database import connect_engine, transaction
from calotype.doorbell import Doorbell
from calotype.errors import DependencyDown
from calotype.ids import new_id
from calotype.jobs import Job, Progress, State
from calotype.settings import Settings
from calotype.tenants import Tenant
from calotype.workers import WorkerState, list_workers, seen
from worker import reconciler
from worker.reconciler import Leadership, Reconciler, forgotten_queues

QUEUE = "diffusion.generate"
GetJob = Callable[[UUID], Job]


class Rings(Doorbell):
    """Writes down what was rung instead of sending it."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.rung: list[str] = []
        self.announced: list[UUID] = []

    def ring(self, queue: str) -> None:
        self.rung.append(queue)

    def announce(self, job_id: UUID) -> None:
        self.announced.append(job_id)


@dataclasses.dataclass
class Seat:
    """A reconciler of a test, with its own session for the leader's lock."""

    reconciler: Reconciler
    leadership: Leadership
    rings: Rings
    leader_engine: Engine

    def leave(self) -> None:
        self.leadership.give_up()
        self.rings.close()
        self.leader_engine.dispose()


@pytest.fixture
def take_seat(settings: Settings, engine: Engine, store: ObjectStore) -> Iterator[Callable[..., Seat]]:
    """`take_seat(settled=True)`: a reconciler, by default one whose first lease of patience is over."""
    seats: list[Seat] = []

    def take(*, settled: bool = True, **changes: Any) -> Seat:
        changed = dataclasses.replace(settings, **changes)
        leader_engine = connect_engine(changed, application_name="leader", pool_size=1)
        leadership, rings = Leadership(leader_engine), Rings(changed)
        reconciler = Reconciler(engine=engine, settings=changed, store=store, doorbell=rings, leadership=leadership)
        if settled:
            reconciler.round()
            reconciler._reap_from = 0.0
        seats.append(Seat(reconciler, leadership, rings, leader_engine))
        return seats[-1]

    yield take
    for seat in seats:
        seat.leave()


@pytest.fixture
def lapsed(engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]) -> Callable[..., Job]:
    """A job whose worker has let its lease lapse."""

    def make(**fields: Any) -> Job:
        make_job(**fields)
        with transaction(engine) as conn:
            job = queue.claim(conn, make_worker(), [QUEUE], 60.0)
            assert job is not None
            past = sa.text("clock_timestamp() - interval '1 s'")
            conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(lease_expires_at=past))
        return job

    return make


def test_whoever_waits_for_a_job_is_told_that_it_was_reaped_or_expired(
    take_seat: Callable[..., Seat], lapsed: Callable[..., Job], make_job: Callable[..., Job]
) -> None:
    reaped, expired = lapsed(), make_job(deadline_seconds=0.001)
    seat = take_seat()
    seat.reconciler.round()
    assert set(seat.rings.announced) == {reaped.id, expired.id}


def test_progress_of_jobs_that_ended_long_ago_is_dropped(
    take_seat: Callable[..., Seat], engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    make_job()
    with transaction(engine) as conn:
        job = queue.claim(conn, make_worker(), [QUEUE], 60.0)
        assert job is not None
        queue.progress(conn, job.id, job.epoch, Progress(fraction=0.5, step=1, total=2, stage="denoising"))
        queue.finish(conn, job.id, job.epoch, queue.Outcome(result={}))
    seat = take_seat(progress_seconds=0.001)
    seat.reconciler.collect()
    with transaction(engine) as conn:
        left = events.list_events(conn, job.tenant_id, job.id).events
    assert [event.type for event in left] == ["state", "state", "state"]


def test_an_upload_of_a_model_that_nobody_registers_is_collected(
    take_seat: Callable[..., Seat],
    store: ObjectStore,
    make_tenant: Callable[..., Tenant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = f"{model_upload_prefix(make_tenant().id, new_id())}model.json"
    store.put_bytes(key, b"{}")
    seat = take_seat()
    seat.reconciler.collect()
    assert store.has(key)
    monkeypatch.setattr(reconciler, "UPLOAD_SECONDS", -60.0)
    seat.reconciler.collect()
    assert not store.has(key)


def test_a_lapsed_lease_is_reaped_and_the_queue_rung_for(
    take_seat: Callable[..., Seat], lapsed: Callable[..., Job], get_job: GetJob
) -> None:
    seat, again, over = take_seat(), lapsed(), lapsed(max_attempts=1)
    seat.reconciler.round()
    assert get_job(again.id).state is State.QUEUED
    failed = get_job(over.id)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (State.FAILED, "worker_lost")
    assert QUEUE in seat.rings.rung


def test_a_held_lease_is_left_alone(
    take_seat: Callable[..., Seat],
    engine: Engine,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
    get_job: GetJob,
) -> None:
    job = make_job()
    with transaction(engine) as conn:
        queue.claim(conn, make_worker(), [QUEUE], 60.0)
    take_seat().reconciler.round()
    assert get_job(job.id).state is State.RUNNING


def test_more_lapsed_leases_than_one_batch_are_reaped_in_one_round(
    take_seat: Callable[..., Seat], lapsed: Callable[..., Job], get_job: GetJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.reconciler.BATCH", 2)
    seat, jobs = take_seat(), [lapsed() for _ in range(5)]
    seat.reconciler.round()
    assert {get_job(job.id).state for job in jobs} == {State.QUEUED}


def test_a_job_whose_deadline_passed_expires(
    take_seat: Callable[..., Seat], make_job: Callable[..., Job], get_job: GetJob, eventually: Callable[..., Any]
) -> None:
    seat, job = take_seat(), make_job(deadline_seconds=0.001)

    def expired() -> bool:
        seat.reconciler.round()
        return get_job(job.id).state is State.EXPIRED

    assert eventually(expired)


def test_of_two_reconcilers_one_leads_and_the_other_takes_over(
    take_seat: Callable[..., Seat], lapsed: Callable[..., Job], get_job: GetJob, eventually: Callable[..., Any]
) -> None:
    first, second = take_seat(), take_seat()
    job = lapsed()

    def taken_over() -> bool:
        second.reconciler.round()
        return second.reconciler.leading

    second.reconciler.round()
    assert (first.reconciler.leading, second.reconciler.leading) == (True, False)
    assert get_job(job.id).state is State.RUNNING
    first.leave()
    # Postgres lets go of the lock when it notices that the session has ended, which is a moment later.
    assert eventually(taken_over)
    assert get_job(job.id).state is State.QUEUED


def test_a_leader_whose_session_is_cut_is_no_leader_any_more(take_seat: Callable[..., Seat], database_url: str) -> None:
    first, second = take_seat(), take_seat()
    outage = Outage(database_url)
    outage.begin()
    with pytest.raises(DependencyDown):
        first.reconciler.round()
    assert not first.reconciler.leading
    outage.end()
    with pytest.raises(DependencyDown):
        # It too finds its old session dead, once.
        second.reconciler.round()
    second.reconciler.round()
    first.reconciler.round()
    assert (first.reconciler.leading, second.reconciler.leading) == (False, True)


def test_postgres_itself_notices_soon_that_the_machine_of_a_leader_is_gone(engine: Engine) -> None:
    # Nothing closes the session of a machine that lost its power; the lock would be held on.
    with transaction(engine) as conn:
        names = ("idle", "interval", "count")
        idle, interval, count = (int(conn.scalar(sa.text(f"SHOW tcp_keepalives_{name}")) or 0) for name in names)
    assert idle + interval * count <= 30


def test_after_an_outage_of_postgres_workers_get_one_more_lease(
    take_seat: Callable[..., Seat],
    lapsed: Callable[..., Job],
    get_job: GetJob,
    database_url: str,
    eventually: Callable[..., Any],
) -> None:
    seat, job = take_seat(lease_seconds=1.0, heartbeat_seconds=0.3), lapsed()
    outage = Outage(database_url)
    outage.begin()
    with pytest.raises(DependencyDown):
        seat.reconciler.round()
    outage.end()
    seat.reconciler.round()
    assert get_job(job.id).state is State.RUNNING

    def reaped() -> bool:
        seat.reconciler.round()
        return get_job(job.id).state is State.QUEUED

    assert eventually(reaped, 3.0)


def test_rounds_further_apart_than_a_lease_still_reap(
    take_seat: Callable[..., Seat], lapsed: Callable[..., Job], get_job: GetJob
) -> None:
    seat, job = take_seat(lease_seconds=1.0, heartbeat_seconds=0.3, reconcile_seconds=10.0), lapsed()
    # As if the last round were one interval ago.
    assert seat.reconciler._last_answer is not None
    seat.reconciler._last_answer -= 10.0
    seat.reconciler.round()
    assert get_job(job.id).state is State.QUEUED


def test_a_queue_is_rung_for_only_where_an_idle_worker_could_hear(
    engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    worker = make_worker(queues=("diffusion.train", QUEUE))
    with transaction(engine) as conn:
        seen(conn, worker, WorkerState.IDLE)
        assert list(forgotten_queues(conn)) == []
    make_job()
    with transaction(engine) as conn:
        assert list(forgotten_queues(conn)) == [QUEUE]
        seen(conn, worker, WorkerState.BUSY)
        assert list(forgotten_queues(conn)) == []


def test_a_worker_that_is_not_seen_is_retired_and_old_keys_are_forgotten(
    take_seat: Callable[..., Seat],
    engine: Engine,
    make_worker: Callable[..., UUID],
    make_job: Callable[..., Job],
    tenant: Tenant,
) -> None:
    silent, alive = make_worker(), make_worker()
    keys = tables.idempotency_keys
    with transaction(engine) as conn:
        long_ago = sa.text("now() - interval '2 days'")
        conn.execute(tables.workers.update().where(tables.workers.c.id == silent).values(seen_at=long_ago))
        common = {"tenant_id": tenant.id, "body_sha256": b"0" * 32, "job_id": make_job().id}
        conn.execute(keys.insert().values(key="old", created_at=long_ago, **common))
        conn.execute(keys.insert().values(key="new", **common))
    take_seat().reconciler.round()
    with transaction(engine) as conn:
        assert [worker.id for worker in list_workers(conn)] == [alive]
        assert conn.scalars(sa.select(keys.c.key)).all() == ["new"]


def test_the_process_reconciles_through_its_main_loop_and_stops_when_told(
    settings: Settings,
    lapsed: Callable[..., Job],
    get_job: GetJob,
    eventually: Callable[..., Any],
    start_python: Callable[..., Any],
    tmp_path: Path,
) -> None:
    job = lapsed()
    process = start_python(
        "reconciler",
        "-m",
        "worker.reconciler",
        settings=dataclasses.replace(
            settings, lease_seconds=1.0, heartbeat_seconds=0.3, heartbeat_file=tmp_path / "alive"
        ),
    )
    eventually(lambda: get_job(job.id).state is State.QUEUED, 20.0, "the job is reaped")
    assert (tmp_path / "alive").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
