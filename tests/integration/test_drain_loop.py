"""The drain loop claims as the settings say and tells of itself; nobody is rung for what an operator stopped."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE
from sqlalchemy import Engine

from calotype import pauses, queue, tables, workers
from calotype.database import transaction
from calotype.ids import new_id
from calotype.jobs import Job
from calotype.queue import Outcome
from calotype.settings import Settings
from calotype.tenants import Tenant
from calotype.workers import Worker, WorkerState
from worker import app
from worker.drain import DrainLoop
from worker.presence import Presence, Report
from worker.reconciler import forgotten_queues

Eventually = Callable[..., Any]


@dataclasses.dataclass
class Drained:
    """What a loop handed over, and the loop."""

    loop: DrainLoop
    worker: UUID
    batches: list[list[Job]]


@pytest.fixture
def start_loop(
    engine: Engine, settings: Settings, make_worker: Callable[..., UUID]
) -> Iterator[Callable[..., Drained]]:
    """`start_loop(loaded=(), **changed settings)`: a drain loop whose jobs succeed at once."""
    stops: list[tuple[threading.Event, Drained, threading.Thread]] = []

    def start(loaded: Sequence[str] = (), **changes: Any) -> Drained:
        batches: list[list[Job]] = []
        shutdown, worker = threading.Event(), make_worker()

        def execute(jobs: Sequence[Job]) -> None:
            batches.append(list(jobs))
            for job in jobs:
                with transaction(engine) as conn:
                    queue.finish(conn, job.id, job.epoch, Outcome(result={}))

        loop = DrainLoop(
            engine=engine,
            settings=dataclasses.replace(settings, **changes),
            worker_id=worker,
            queues=[GENERATE],
            execute=execute,
            shutdown=shutdown,
            loaded=lambda: loaded,
        )
        thread = threading.Thread(target=loop.run)
        thread.start()
        stops.append((shutdown, Drained(loop, worker, batches), thread))
        return stops[-1][1]

    yield start
    for shutdown, drained, thread in stops:
        shutdown.set()
        drained.loop.ring()
        thread.join(timeout=30)
        assert not thread.is_alive()


def _all_ended(engine: Engine) -> bool:
    with transaction(engine) as conn:
        return conn.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.finished_at.is_(None))).first() is None


def test_a_batch_is_handed_over_whole_and_no_larger_than_the_setting(
    start_loop: Callable[..., Drained], engine: Engine, make_job: Callable[..., Job], eventually: Eventually
) -> None:
    jobs = [make_job(batch_key="k", batch_limit=16).id for _ in range(5)]
    drained = start_loop(max_batch=3, pool="gold")
    eventually(lambda: _all_ended(engine), 30)
    assert [[job.id for job in batch] for batch in drained.batches] == [jobs[:3], jobs[3:]]
    assert {job.pool for batch in drained.batches for job in batch} == {"gold"}


def test_loaded_models_go_first_for_as_many_claims_as_the_setting_says(
    start_loop: Callable[..., Drained], engine: Engine, make_job: Callable[..., Job], eventually: Eventually
) -> None:
    cold = make_job(model_key="cold").id
    warm = [make_job(model_key="warm").id for _ in range(4)]
    drained = start_loop(loaded=["warm"], affinity_streak=2, affinity_seconds=3600.0)
    eventually(lambda: _all_ended(engine), 30)
    assert [batch[0].id for batch in drained.batches] == [*warm[:2], cold, *warm[2:]]


def test_a_drained_worker_takes_nothing_and_looks_again_once_it_is_undrained(
    start_loop: Callable[..., Drained], engine: Engine, make_job: Callable[..., Job], eventually: Eventually
) -> None:
    drained = start_loop(idle_poll_seconds=0.1)
    eventually(lambda: drained.loop.last_look is not None, 30)
    with transaction(engine) as conn:
        workers.drain(conn, drained.worker)
    make_job()
    before = drained.loop.last_look
    eventually(lambda: drained.loop.last_look != before, 30)
    drained.loop.wait_answered(drained.loop.ring())
    assert drained.batches == []
    with transaction(engine) as conn:
        workers.undrain(conn, drained.worker)
    eventually(lambda: _all_ended(engine), 30)


def test_a_bell_is_passed_on_by_a_worker_that_finds_out_only_then_that_an_operator_drained_it(
    start_loop: Callable[..., Drained], engine: Engine, make_job: Callable[..., Job], eventually: Eventually
) -> None:
    drained, rung = start_loop(idle_poll_seconds=600.0), []
    doorbell: Any = SimpleNamespace(ring=rung.append)
    drained.loop.wait_answered(drained.loop.ring())
    with transaction(engine) as conn:
        workers.drain(conn, drained.worker)
    make_job()
    assert drained.loop.answers
    hearing = threading.Thread(target=app.answer, args=(GENERATE, drained.loop, doorbell))
    hearing.start()
    eventually(lambda: rung == [GENERATE], 30)
    # Nor does it listen for another bell meanwhile.
    assert not drained.loop.answers and hearing.is_alive() and drained.batches == []

    with transaction(engine) as conn:
        workers.undrain(conn, drained.worker)
    # As its presence does when it learns of that.
    drained.loop.ring()
    hearing.join(timeout=30)
    assert not hearing.is_alive() and rung == [GENERATE]
    assert len(drained.batches) == 1


def test_a_job_that_could_not_be_had_is_looked_for_again_without_a_bell(
    start_loop: Callable[..., Drained], engine: Engine, make_job: Callable[..., Job], eventually: Eventually
) -> None:
    drained = start_loop(idle_poll_seconds=600.0)
    make_job()
    drained.loop.ring()
    eventually(lambda: _all_ended(engine), 30)
    make_job()
    with transaction(engine) as conn:
        # As in a claim of the same tenant whose commit takes long.
        conn.execute(sa.select(tables.shares).with_for_update())
        before = drained.loop.last_look
        drained.loop.ring()
        eventually(lambda: drained.loop.last_look != before, 30)
        assert len(drained.batches) == 1
    eventually(lambda: len(drained.batches) == 2, 30)


@pytest.fixture
def read_worker(engine: Engine) -> Callable[[UUID], Worker | None]:
    def read(worker_id: UUID) -> Worker | None:
        with transaction(engine) as conn:
            row = conn.execute(sa.select(tables.workers).where(tables.workers.c.id == worker_id)).mappings()
            found = row.one_or_none()
        return Worker.from_row(found) if found is not None else None

    return read


def test_a_workers_row_tells_pool_and_last_look_and_is_told_to_drain(
    engine: Engine, settings: Settings, read_worker: Callable[[UUID], Worker | None], eventually: Eventually
) -> None:
    worker_id, looked, told = new_id(), [None, 7.0], []
    presence = Presence(
        engine=engine,
        settings=dataclasses.replace(settings, heartbeat_seconds=0.1, pool="gold"),
        worker_id=worker_id,
        name="w",
        queues=[GENERATE],
        report=lambda: Report(
            state=WorkerState.DRAINING if presence.draining else WorkerState.IDLE,
            loaded=["m"],
            looked_seconds_ago=looked[0],
        ),
        on_draining=lambda: told.append(presence.draining),
    )
    presence.start()
    try:
        row = eventually(lambda: read_worker(worker_id), 30)
        assert (row.pool, row.looked_at, row.draining) == ("gold", None, False)
        looked.pop(0)
        row = eventually(lambda: (found := read_worker(worker_id)) and found.looked_at and found, 30)
        assert 6.0 < (row.seen_at - row.looked_at).total_seconds() < 8.0
        with transaction(engine) as conn:
            workers.drain(conn, worker_id)
        eventually(lambda: read_worker(worker_id).state is WorkerState.DRAINING, 30)
        with transaction(engine) as conn:
            workers.undrain(conn, worker_id)
        eventually(lambda: read_worker(worker_id).state is WorkerState.IDLE, 30)
        assert told == [True, False]
    finally:
        presence.stop(10)


def test_nobody_is_rung_for_a_paused_queue_a_draining_worker_or_a_job_that_follows_another(
    engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID], tenant: Tenant
) -> None:
    worker, job = make_worker(), make_job()
    leader = make_job(model_key="leader")
    with transaction(engine) as conn:
        workers.seen(conn, worker, WorkerState.IDLE)
        assert list(forgotten_queues(conn)) == [GENERATE]
        pauses.pause(conn, GENERATE)
        assert list(forgotten_queues(conn)) == []
        pauses.resume(conn, GENERATE)
        workers.drain(conn, worker)
        assert list(forgotten_queues(conn)) == []
        workers.undrain(conn, worker)
        assert list(forgotten_queues(conn)) == [GENERATE]
        queue.cancel(conn, tenant.id, leader.id)
        jobs = tables.jobs
        conn.execute(jobs.update().where(jobs.c.id == job.id).values(leader_id=leader.id))
        assert list(forgotten_queues(conn)) == []
