"""The object store is away, freezes and comes back: finished work waits for it, and is delivered once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from calotype.jobs import Job
from tests.faults.accounting import Accounts
from tests.faults.conftest import LEASE
from tests.faults.processes import Processes
from tests.faults.servers import Servers

Submit = Callable[..., Job]
Eventually = Callable[..., Any]


def test_finished_jobs_wait_with_their_files_while_the_store_is_away_for_two_leases(
    processes: Processes, servers: Servers, submit: Submit, accounts: Accounts, eventually: Eventually
) -> None:
    processes.reconciler()
    workers = [processes.worker(name) for name in ("one", "two")]
    jobs = [submit() for _ in range(3)]
    accounts.settle([job.id for job in jobs])
    servers.s3.kill()
    jobs += [submit() for _ in range(10)]
    eventually(lambda: all(worker.says("waiting for a dependency") for worker in workers), 30.0)
    time.sleep(2 * LEASE)
    servers.s3.start()
    accounts.settle([job.id for job in jobs])


def test_a_store_that_is_killed_again_and_again_makes_no_torn_artifact(
    processes: Processes, servers: Servers, submit: Submit, accounts: Accounts
) -> None:
    processes.reconciler()
    for name in ("one", "two"):
        processes.worker(name)
    # Large enough that a kill finds uploads under way.
    jobs = [submit("large", {"megabytes": 20, "nonce": number}) for number in range(12)]
    for _ in range(8):
        time.sleep(0.4)
        servers.s3.restart()
    accounts.settle([job.id for job in jobs])
