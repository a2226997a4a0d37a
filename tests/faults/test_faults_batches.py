"""Jobs that share a call of their model, and the faults that meet all of them at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calotype import queue
from calotype.database import transaction
from calotype.jobs import Job, State
from calotype.tenants import Tenant
from tests.faults.accounting import Accounts
from tests.faults.processes import Processes

Eventually = Callable[..., Any]


@pytest.fixture
def submit_alike(submit: Callable[..., Job], make_tenant: Callable[..., Tenant]) -> Callable[..., list[Job]]:
    """``submit_alike(count, plan)``: jobs of several tenants that may share a call."""

    def make(count: int, plan: dict[str, Any] | None = None, **fields: Any) -> list[Job]:
        return [
            submit("share", plan or {}, tenant=make_tenant(), batch_key="alike", batch_limit=8, **fields)
            for _ in range(count)
        ]

    return make


def sharing(began: Path) -> int:
    """How many jobs share the call that has begun; 0 before."""
    return int(began.read_text() or 0) if began.exists() else 0


def test_all_jobs_of_a_call_whose_worker_is_killed_are_done_again_once(
    processes: Processes,
    submit_alike: Callable[..., list[Job]],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    jobs = submit_alike(4, {"path": tmp_path / "go", "began": tmp_path / "began"})
    processes.reconciler()
    victim = processes.worker("victim", batch=True)
    eventually(lambda: sharing(tmp_path / "began") == 4, 30.0)
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir", batch=True)
    done = accounts.settle([job.id for job in jobs], attempts=2, reruns=1)
    # One that brought its worker down must not take the others along again.
    assert {job.result["size"] for job in done.values() if job.result} == {1}


def test_a_call_that_is_killed_when_some_of_its_jobs_are_done_repeats_only_the_others(
    processes: Processes,
    submit_alike: Callable[..., list[Job]],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    quick = submit_alike(2)
    slow = submit_alike(2, {"path": tmp_path / "go", "began": tmp_path / "began"})
    processes.reconciler()
    victim = processes.worker("victim", batch=True)
    eventually(lambda: sharing(tmp_path / "began") == 4, 30.0)
    accounts.wait([job.id for job in quick])
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir", batch=True)
    attempts = {job.id: 2 for job in slow}
    done = accounts.settle([job.id for job in quick + slow], attempts=attempts, reruns=1)
    assert {done[job.id].epoch for job in quick} == {1}


def test_a_call_that_is_frozen_past_its_leases_publishes_none_of_its_jobs(
    processes: Processes,
    submit_alike: Callable[..., list[Job]],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    jobs = submit_alike(3, {"path": tmp_path / "go", "began": tmp_path / "began"})
    processes.reconciler()
    frozen = processes.worker("frozen", batch=True, faults=["no-lease-thread"])
    eventually(lambda: sharing(tmp_path / "began") == 3, 30.0)
    frozen.freeze()
    heir = processes.worker("heir", batch=True)
    # The heir has them one after the other: the call of the frozen worker goes on when all are done.
    eventually(lambda: any(len(accounts.begun(job.id)) == 2 for job in jobs), 30.0)
    (tmp_path / "go").touch()
    accounts.wait([job.id for job in jobs])
    frozen.thaw()
    eventually(lambda: frozen.log().count("not settled: the epoch is stale") == 3, 30.0)
    done = accounts.settle([job.id for job in jobs], attempts=2, reruns=1)
    assert {job.result["pid"] for job in done.values() if job.result} == {heir.pid}


def test_a_call_that_runs_out_of_memory_is_split_and_every_job_ends_once(
    processes: Processes, submit_alike: Callable[..., list[Job]], accounts: Accounts
) -> None:
    jobs = submit_alike(5, {"room": 1})
    processes.worker(batch=True)
    # Within their first claims: no attempt is charged for it.
    done = accounts.settle([job.id for job in jobs], splits=1)
    assert {job.result["size"] for job in done.values() if job.result} == {1}


def test_a_job_that_fits_nowhere_fails_alone_for_want_of_memory(
    processes: Processes, submit_alike: Callable[..., list[Job]], accounts: Accounts
) -> None:
    jobs, monster = submit_alike(3), submit_alike(1, {"room": 0}, max_attempts=2)
    processes.worker(batch=True)
    done = accounts.settle(
        [job.id for job in jobs + monster],
        states=(State.SUCCEEDED, State.FAILED),
        attempts={monster[0].id: 2},
        reruns=1,
        splits=1,
    )
    assert {job.id for job in done.values() if job.state is State.FAILED} == {monster[0].id}
    error = done[monster[0].id].error
    assert error is not None
    assert error.code == "out_of_memory"


def test_of_the_jobs_of_a_call_the_canceled_one_leaves_and_the_others_survive_a_kill(
    processes: Processes,
    submit_alike: Callable[..., list[Job]],
    accounts: Accounts,
    eventually: Eventually,
    engine: Any,
    tmp_path: Path,
) -> None:
    jobs = submit_alike(3, {"path": tmp_path / "go", "began": tmp_path / "began"})
    processes.reconciler()
    victim = processes.worker("victim", batch=True)
    eventually(lambda: sharing(tmp_path / "began") == 3, 30.0)
    with transaction(engine) as conn:
        queue.cancel(conn, jobs[0].tenant_id, jobs[0].id)
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir", batch=True)
    attempts = {job.id: 2 for job in jobs[1:]}
    done = accounts.settle(
        [job.id for job in jobs], states=(State.SUCCEEDED, State.CANCELED), attempts=attempts, reruns=1
    )
    assert [done[job.id].state for job in jobs] == [State.CANCELED, State.SUCCEEDED, State.SUCCEEDED]


def test_a_worker_that_crashes_between_the_ends_of_a_call_publishes_each_job_once(
    processes: Processes, submit_alike: Callable[..., list[Job]], accounts: Accounts
) -> None:
    jobs = submit_alike(4)
    processes.reconciler()
    # The first of the four is committed, the others are not.
    victim = processes.worker("victim", batch=True, faults=["die-after-finish-commit"])
    assert victim.wait(30.0) == -signal.SIGKILL
    processes.worker("heir", batch=True)
    accounts.settle([job.id for job in jobs], attempts=range(1, 3), reruns=1)
