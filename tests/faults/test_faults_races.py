"""Two at once: cancel and finish, two reconcilers, many claims, a large tenant and a small one."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import queue, tables, workers
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.errors import CalotypeError
from calotype.ids import new_id
from calotype.jobs import Job, State
from calotype.settings import Settings
from calotype.tenants import Tenant
from tests.faults.accounting import Accounts
from tests.faults.processes import Processes
from worker.reconciler import Leadership, Reconciler

Submit = Callable[..., Job]
Eventually = Callable[..., Any]
QUEUE = "diffusion.generate"


def test_of_cancel_and_finish_one_wins_and_the_other_sees_it(
    processes: Processes, submit: Submit, accounts: Accounts, engine: Engine, tmp_path: Path
) -> None:
    processes.worker(cancel_poll_seconds=30.0, idle_poll_seconds=0.05)
    jobs, ends = [], Counter[State]()
    # A cancel that comes late loses: aim the next one earlier, and the other way round.
    lead = 0.0
    for number in range(60):
        go, began = tmp_path / f"go-{number}", tmp_path / f"began-{number}"
        job = submit("until", {"path": go, "began": began, "deaf": True})
        jobs.append(job)
        while not began.exists():
            time.sleep(0.002)
        if lead < 0:
            _cancel(engine, job)
            time.sleep(-lead)
            go.touch()
        else:
            go.touch()
            time.sleep(lead)
            _cancel(engine, job)
        accounts.wait([job.id])
        end = accounts.jobs()[job.id].state
        ends[end] += 1
        lead += -0.004 if end is State.SUCCEEDED else 0.004
    accounts.settle([job.id for job in jobs], states=(State.SUCCEEDED, State.CANCELED))
    assert min(ends[State.SUCCEEDED], ends[State.CANCELED]) >= 3, ends


def _cancel(engine: Engine, job: Job) -> None:
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)


def test_cancel_and_finish_at_the_very_same_moment_publish_all_or_nothing(
    engine: Engine, submit: Submit, worker_id: UUID
) -> None:
    ends: Counter[State] = Counter()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(150):
            submit()
            with transaction(engine) as conn:
                job = queue.claim(conn, worker_id, [QUEUE], 60.0)
            assert job is not None
            together = threading.Barrier(2)
            canceled = pool.submit(_at, together, engine, partial(_cancel_in, job))
            finished = pool.submit(_at, together, engine, partial(_finish_in, job))
            saw, made = canceled.result(), finished.result()
            with transaction(engine) as conn:
                if not isinstance(made, Job):
                    assert type(made).__name__ == "CancelRequested"
                    queue.acknowledge_cancel(conn, job.id, job.epoch)
                [end] = conn.scalars(sa.select(tables.jobs.c.state).where(tables.jobs.c.id == job.id))
            ends[State(end)] += 1
            assert isinstance(saw, Job)
            assert (saw.state, end) in {(State.SUCCEEDED, "succeeded"), (State.CANCELING, "canceled")}
    assert set(ends) == {State.SUCCEEDED, State.CANCELED}, ends


def _cancel_in(job: Job, conn: sa.Connection) -> Job:
    return queue.cancel(conn, job.tenant_id, job.id)


def _finish_in(job: Job, conn: sa.Connection) -> Job:
    return queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"done": True}))


def _at(together: threading.Barrier, engine: Engine, move: Callable[[sa.Connection], Job]) -> Job | CalotypeError:
    try:
        with transaction(engine) as conn:
            together.wait(10.0)
            return move(conn)
    except CalotypeError as exc:
        return exc


@pytest.fixture
def worker_id(engine: Engine) -> UUID:
    """A worker's row; nobody is behind it."""
    info = workers.WorkerInfo(
        id=new_id(), name="nobody", hostname="host", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="test"
    )
    with transaction(engine) as conn:
        return workers.register(conn, info).id


@pytest.fixture
def lapsed(engine: Engine, submit: Submit, worker_id: UUID) -> Callable[[int], list[Job]]:
    """``lapsed(count)``: jobs that a worker holds whose lease is over."""

    def make(count: int) -> list[Job]:
        jobs = [submit() for _ in range(count)]
        past = sa.text("clock_timestamp() - interval '1 s'")
        with transaction(engine) as conn:
            for _ in jobs:
                assert queue.claim(conn, worker_id, [QUEUE], 60.0) is not None
            conn.execute(tables.jobs.update().values(lease_expires_at=past))
        return jobs

    return make


def test_two_reconcilers_that_both_think_they_lead_reap_each_job_once(
    processes: Processes,
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    lapsed: Callable[[int], list[Job]],
    accounts: Accounts,
) -> None:
    jobs = lapsed(150)
    seats = []
    for _ in range(2):
        leadership = Leadership(engine)
        leadership.held = lambda: True  # type: ignore[method-assign]
        doorbell = Doorbell(settings)
        reconciler = Reconciler(engine=engine, settings=settings, store=store, doorbell=doorbell, leadership=leadership)
        reconciler.round()
        reconciler._reap_from = 0.0
        seats.append((reconciler, doorbell))
    together = threading.Barrier(2)

    def reconcile(reconciler: Reconciler) -> None:
        together.wait(10.0)
        reconciler.round()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(reconcile, [reconciler for reconciler, _ in seats]))
    for _, doorbell in seats:
        doorbell.close()
    found = accounts.jobs().values()
    assert {(job.state, job.attempt, job.epoch, job.revision) for job in found} == {(State.QUEUED, 1, 1, 2)}
    processes.worker()
    accounts.settle([job.id for job in jobs], attempts=2)


def test_of_two_reconciler_processes_the_second_takes_over_when_the_first_is_killed(
    processes: Processes, lapsed: Callable[[int], list[Job]], accounts: Accounts, eventually: Eventually
) -> None:
    first = processes.reconciler("first")
    eventually(lambda: first.says("leading"), 30.0)
    second = processes.reconciler("second")
    eventually(lambda: second.says("reconciling"), 30.0)
    first.kill()
    jobs = lapsed(30)
    processes.worker()
    accounts.settle([job.id for job in jobs], attempts=2)
    assert second.says("leading")


@pytest.mark.timeout(300)
def test_a_tenant_with_one_job_does_not_wait_for_another_with_a_thousand(
    processes: Processes,
    submit: Submit,
    make_tenant: Callable[..., Tenant],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    large, small = make_tenant(), make_tenant()
    in_hand = {"path": tmp_path / "go", "began": tmp_path / "began"}
    crowd = [submit(tenant=large) for _ in range(50)]
    crowd.append(submit("until", in_hand, tenant=large))
    crowd += [submit(tenant=large) for _ in range(949)]
    processes.worker()
    eventually((tmp_path / "began").exists, 60.0)
    lone = submit(tenant=small)
    (tmp_path / "go").touch()
    accounts.wait([lone.id])
    # What is left to show needs no order.
    processes.worker("second")
    done = accounts.settle([*(job.id for job in crowd), lone.id], timeout=200.0)
    begun = done[lone.id].started_at
    assert begun is not None
    overtook = [one for one in done.values() if one.started_at and lone.created_at < one.started_at < begun]
    assert overtook == [], f"{len(overtook)} jobs of the large tenant went first"
