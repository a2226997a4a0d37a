"""Workers that are killed, frozen, and crash between two steps of a job's end: the job still ends once."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from calotype.artifacts import ObjectStore, job_prefix
from calotype.doorbell import Doorbell
from calotype.jobs import Job
from calotype.registry import ModelVersion
from calotype.settings import Settings
from tests.faults.accounting import Accounts
from tests.faults.processes import LISTENING, Processes

Submit = Callable[..., Job]
Eventually = Callable[..., Any]


def test_a_job_whose_worker_is_killed_in_the_middle_is_done_again_once(
    processes: Processes, submit: Submit, accounts: Accounts, eventually: Eventually, tmp_path: Path
) -> None:
    job = submit("until", {"path": tmp_path / "go", "began": tmp_path / "began"})
    others = [submit() for _ in range(5)]
    processes.reconciler()
    victim = processes.worker("victim")
    eventually((tmp_path / "began").exists, 30.0)
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir")
    done = accounts.settle([job.id, *(one.id for one in others)], attempts={job.id: 2}, reruns=1)
    assert (done[job.id].epoch, len(accounts.begun(job.id))) == (2, 2)


def test_a_worker_killed_right_after_its_claim_costs_an_attempt_and_nothing_else(
    processes: Processes, submit: Submit, accounts: Accounts
) -> None:
    job = submit()
    processes.reconciler()
    victim = processes.worker("victim", faults=["die-after-claim-commit"])
    assert victim.wait(30.0) == -signal.SIGKILL
    processes.worker("heir")
    accounts.settle([job.id], attempts=2)


def test_a_worker_killed_between_the_doorbell_and_its_claim_takes_nothing_along(
    processes: Processes, submit: Submit, accounts: Accounts, eventually: Eventually, settings: Settings
) -> None:
    # Neither looks by itself again, so what the victim heard must be rung for once more.
    victim = processes.worker("victim", faults=["die-between-bell-and-claim"], idle_poll_seconds=600.0)
    heir = processes.worker("heir", idle_poll_seconds=600.0)
    eventually(lambda: victim.says(LISTENING) and heir.says(LISTENING), 30.0)
    processes.reconciler()
    jobs, doorbell = [], Doorbell(settings)

    def dead() -> bool:
        # Redis decides which of the two hears a bell.
        jobs.append(submit())
        doorbell.ring(jobs[-1].queue)
        return victim.wait(0.5) is not None

    eventually(dead, 30.0)
    doorbell.close()
    accounts.settle([job.id for job in jobs])
    assert {accounts.begun(job.id)[0].pid for job in jobs} == {heir.pid}


def test_a_worker_frozen_in_the_middle_of_a_claim_holds_no_lock_for_long(
    processes: Processes, submit: Submit, accounts: Accounts, eventually: Eventually
) -> None:
    jobs = [submit() for _ in range(5)]
    processes.reconciler()
    # Half a minute in life.
    frozen = processes.worker("frozen", faults=["freeze-in-a-claim=3"])
    eventually(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED, 30.0)
    heir = processes.worker("heir")
    accounts.wait([job.id for job in jobs])
    frozen.thaw()
    heir.stop()
    # Its claim was never committed; it goes on as if it had not been away.
    jobs.append(submit())
    # What it had computed before may not have been published when it froze: up to two jobs are done again.
    accounts.settle([job.id for job in jobs], attempts=range(1, 3), reruns=2)
    assert {begun.pid for job in jobs for begun in accounts.begun(job.id)} == {heir.pid, frozen.pid}


def test_a_worker_that_crashes_after_its_upload_and_before_the_commit_has_published_nothing(
    processes: Processes, submit: Submit, accounts: Accounts, store: ObjectStore
) -> None:
    job = submit()
    processes.reconciler()
    victim = processes.worker("victim", faults=["die-before-finish-commit"])
    assert victim.wait(30.0) == -signal.SIGKILL
    assert [item.key for item in store.list_keys("tenants/")] == [f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"]
    processes.worker("heir")
    done = accounts.settle([job.id], attempts=2, reruns=1)
    assert done[job.id].epoch == 2


def test_a_worker_that_crashes_after_the_commit_has_published_once(
    processes: Processes, submit: Submit, accounts: Accounts
) -> None:
    job = submit()
    processes.reconciler()
    victim = processes.worker("victim", faults=["die-after-finish-commit"])
    assert victim.wait(30.0) == -signal.SIGKILL
    other = submit()
    heir = processes.worker("heir")
    accounts.settle([job.id, other.id])
    assert [accounts.begun(one.id)[0].pid for one in (job, other)] == [victim.pid, heir.pid]


@pytest.mark.parametrize("faults", [[], ["no-lease-thread"]], ids=["told by its lease thread", "told by nobody"])
def test_a_worker_frozen_past_its_lease_is_refused_every_write_when_it_comes_back(
    faults: list[str],
    processes: Processes,
    submit: Submit,
    accounts: Accounts,
    store: ObjectStore,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    answers = tmp_path / "answers"
    job = submit("stubborn", {"path": tmp_path / "go", "began": tmp_path / "began", "answers": answers})
    processes.reconciler()
    frozen = processes.worker("frozen", faults=faults)
    eventually((tmp_path / "began").exists, 30.0)
    frozen.freeze()
    heir = processes.worker("heir")
    accounts.wait([job.id])
    (tmp_path / "go").touch()
    frozen.thaw()
    eventually(lambda: frozen.says("not settled: the epoch is stale", "dropped: another worker has the job"), 30.0)
    refused = json.loads(answers.read_text())
    assert refused == dict.fromkeys(("heartbeat", "look", "progress", "checkpoint", "release"), "LeaseLost")
    if faults:
        # Nobody told it to stop: it did upload, and was refused the last of its writes, the finish.
        assert frozen.says("not settled: the epoch is stale")
        late = f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"
        assert late in {item.key for item in store.list_keys("tenants/")}
    # It is as good a worker as before.
    heir.stop()
    later = submit()
    done = accounts.settle([job.id, later.id], attempts={job.id: 2}, reruns=1)
    assert done[job.id].result is not None
    assert done[job.id].result["pid"] == heir.pid
    assert accounts.begun(later.id)[0].pid == frozen.pid


@pytest.mark.parametrize("seconds", [3600, -3600], ids=["fast", "slow"])
def test_a_worker_whose_clock_is_off_by_an_hour_holds_its_leases_by_that_of_the_database(
    seconds: int, processes: Processes, submit: Submit, accounts: Accounts
) -> None:
    # Longer than a lease, so that it lives by its heartbeats.
    jobs = [submit("work", {"seconds": 5.0}), *(submit() for _ in range(3))]
    processes.reconciler()
    processes.worker("off", faults=[f"clock={seconds}"])
    accounts.settle([job.id for job in jobs])


def test_a_worker_whose_disk_is_full_puts_the_job_back_and_goes_on_with_others(
    processes: Processes, submit: Submit, accounts: Accounts, model: ModelVersion
) -> None:
    heavy, light = submit("load", {"model": "small-model"}, priority=9), submit()
    # Full for the fetch and for the second try after the cache was emptied.
    processes.worker("full", faults=["full-disk=2"])
    accounts.settle([heavy.id, light.id], attempts={heavy.id: 2}, reruns=1)
    cache = processes.settings.cache_dir
    assert [*cache.rglob("*.part"), *(cache / "incoming").iterdir(), *(cache / "reserved").iterdir()] == []
