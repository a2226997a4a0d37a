"""Postgres restarts, loses its connections, has none left, is away while jobs compute: each job still ends once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy.engine import make_url

from calotype.jobs import Job, State
from calotype.tenants import Tenant
from tests.faults.accounting import Accounts
from tests.faults.conftest import LEASE
from tests.faults.processes import Processes
from tests.faults.servers import Servers

Submit = Callable[..., Job]
Eventually = Callable[..., Any]


def client(database_url: str, database: str | None = None) -> psycopg.Connection[Any]:
    """A session that is none of Calotype's, and has none of its timeouts."""
    url = make_url(database_url).set(drivername="postgresql")
    url = url if database is None else url.set(database=database)
    return psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)


def test_jobs_that_compute_while_postgres_is_away_for_two_leases_finish_once(
    processes: Processes,
    servers: Servers,
    submit: Submit,
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    plan = {"path": tmp_path / "go", "began": tmp_path / "began"}
    computing, waiting = submit("until", plan), [submit() for _ in range(5)]
    processes.reconciler("first"), processes.reconciler("second")
    worker = processes.worker()
    eventually((tmp_path / "began").exists, 30.0)
    servers.postgres.stop()
    time.sleep(2 * LEASE + 0.5)
    (tmp_path / "go").touch()
    # It is done before Postgres is back, and has to wait with its result.
    eventually(lambda: worker.says("waiting for a dependency"), 30.0)
    servers.postgres.start()
    accounts.settle([computing.id, *(job.id for job in waiting)])


def test_postgres_killed_and_restarted_again_and_again_loses_no_job(
    processes: Processes, servers: Servers, submit: Submit, accounts: Accounts, eventually: Eventually
) -> None:
    jobs = [submit("work", {"seconds": 0.5}) for _ in range(20)]
    processes.reconciler()
    for name in ("one", "two"):
        processes.worker(name)
    for _ in range(5):
        eventually(lambda: any(accounts.begun(job.id) for job in jobs), 30.0)
        time.sleep(0.7)
        servers.postgres.kill()
        time.sleep(0.3)
        servers.postgres.start()
    # No worker died: nothing was done twice. But a claim may be committed whose answer the worker never got.
    accounts.settle([job.id for job in jobs], attempts=range(1, 4))


def test_backends_terminated_under_load_lose_no_job_and_repeat_none(
    processes: Processes, submit: Submit, accounts: Accounts, database_url: str
) -> None:
    jobs = [submit("work", {"seconds": 0.2}) for _ in range(40)]
    processes.reconciler()
    for name in ("one", "two"):
        processes.worker(name)
    over = threading.Event()

    def terminate() -> None:
        statement = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            "WHERE datname = %s AND application_name <> 'test' AND random() < 0.3"
        )
        with client(database_url, "postgres") as connection:
            while not over.wait(0.1):
                connection.execute(statement, (make_url(database_url).database,))

    killer = threading.Thread(target=terminate)
    killer.start()
    try:
        accounts.wait([job.id for job in jobs])
    finally:
        over.set()
        killer.join()
    # A claim may be committed whose answer the worker never got; no work is begun twice.
    accounts.settle([job.id for job in jobs], attempts=range(1, 4))


@contextmanager
def every_connection_taken(database_url: str) -> Iterator[None]:
    """Idle clients have taken every connection, and take each that becomes free as long as the block runs."""
    over, none_left = threading.Event(), threading.Event()

    def take() -> None:
        with ExitStack() as taken:
            while not over.is_set():
                try:
                    taken.enter_context(client(database_url, "postgres"))
                except psycopg.OperationalError:
                    none_left.set()
                    over.wait(0.05)

    taker = threading.Thread(target=take)
    taker.start()
    try:
        assert none_left.wait(60.0)
        yield
    finally:
        over.set()
        taker.join()


def test_jobs_wait_for_a_connection_when_idle_clients_have_taken_all_of_them(
    processes: Processes,
    submit: Submit,
    accounts: Accounts,
    eventually: Eventually,
    database_url: str,
    tmp_path: Path,
) -> None:
    job = submit("until", {"path": tmp_path / "go", "began": tmp_path / "began"})
    others = [submit("work", {"seconds": 0.1}) for _ in range(10)]
    processes.reconciler()
    processes.worker("first")
    eventually((tmp_path / "began").exists, 30.0)
    with every_connection_taken(database_url):
        # It finds none at all, and comes in when one is free.
        late = processes.worker("late")
        eventually(lambda: late.says("too many clients"), 30.0)
        (tmp_path / "go").touch()
        time.sleep(1.5 * LEASE)
    accounts.settle([job.id, *(one.id for one in others)])


@contextmanager
def row_lock(database_url: str, job_id: UUID) -> Iterator[None]:
    """A client that began a transaction, locked the row of a job and does nothing since."""
    with client(database_url) as connection, connection.transaction():
        connection.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (job_id,))
        yield


@contextmanager
def share_lock(database_url: str, tenant_id: UUID) -> Iterator[None]:
    """The same with what a tenant has had of the pool."""
    with client(database_url) as connection, connection.transaction():
        connection.execute("SELECT FROM shares WHERE tenant_id = %s FOR UPDATE", (tenant_id,))
        yield


def test_an_idle_client_that_holds_the_lock_of_a_running_job_delays_its_end_and_no_other(
    processes: Processes,
    submit: Submit,
    accounts: Accounts,
    eventually: Eventually,
    database_url: str,
    tmp_path: Path,
) -> None:
    plan = {"path": tmp_path / "go", "began": tmp_path / "began"}
    job, others = submit("until", plan, priority=9), [submit() for _ in range(5)]
    processes.reconciler()
    processes.worker("one")
    eventually((tmp_path / "began").exists, 30.0)
    with row_lock(database_url, job.id):
        # Nobody can renew this lease, and nobody may reap it: the row that lapses is locked.
        processes.worker("two")
        accounts.wait([one.id for one in others])
        time.sleep(1.5 * LEASE)
        assert accounts.jobs()[job.id].state is State.RUNNING
        (tmp_path / "go").touch()
    # When the lock goes the lease has lapsed: its worker or the reaper comes first.
    accounts.settle([job.id, *(one.id for one in others)], attempts=range(1, 3), reruns=1)


def test_an_idle_client_that_holds_the_lock_of_a_queued_job_stops_no_other(
    processes: Processes, submit: Submit, accounts: Accounts, database_url: str
) -> None:
    first, others = submit(priority=9), [submit() for _ in range(5)]
    processes.reconciler()
    with row_lock(database_url, first.id):
        processes.worker()
        accounts.wait([one.id for one in others])
        assert accounts.jobs()[first.id].state is State.QUEUED
    accounts.settle([first.id, *(one.id for one in others)])


def test_an_idle_client_that_holds_the_lock_of_a_tenants_share_stops_no_other_tenant(
    processes: Processes,
    submit: Submit,
    accounts: Accounts,
    database_url: str,
    tenant: Tenant,
    make_tenant: Callable[..., Tenant],
) -> None:
    processes.reconciler()
    processes.worker("one"), processes.worker("two")
    before = submit()
    accounts.wait([before.id])
    other = make_tenant()
    with share_lock(database_url, tenant.id):
        # It is the turn of the first at every claim.
        locked, others = submit(), [submit(tenant=other) for _ in range(5)]
        accounts.wait([job.id for job in others])
        assert accounts.jobs()[locked.id].state is State.QUEUED
    accounts.settle([before.id, locked.id, *(job.id for job in others)])
