"""How much of a tenant may run and wait: never more, however many claim at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE, Floor, counted
from sqlalchemy import Engine

from calotype import queue, tables, tenants
from calotype.database import connect_engine, transaction
from calotype.errors import LimitExceeded
from calotype.queue import Claimant, Outcome
from calotype.settings import Settings
from calotype.tenants import Tenant

CLAIMERS = 16
LIMIT = 5


@pytest.fixture
def floor(engine: Engine, make_worker: Callable[..., UUID]) -> Floor:
    return Floor(engine, Claimant(worker_id=make_worker(), queues=(GENERATE,), lease_seconds=600.0))


def _running(conn: sa.Connection, tenant: Tenant) -> int:
    jobs = tables.jobs
    mine = sa.and_(jobs.c.tenant_id == tenant.id, jobs.c.state == "running")
    return conn.execute(sa.select(sa.func.count()).select_from(jobs).where(mine)).scalar_one()


def test_no_more_run_than_may_however_many_claim_at_once_in_two_pools(
    floor: Floor, settings: Settings, make_tenant: Callable[..., Tenant], make_worker: Callable[..., UUID]
) -> None:
    limited, free = make_tenant(max_running=LIMIT), make_tenant()
    floor.submit(limited, 120, batch_key="k", batch_limit=4)
    floor.submit(free, 40, batch_key="k", batch_limit=4)
    engine = connect_engine(settings, application_name="claimers", pool_size=CLAIMERS)
    most: list[int] = []
    failures: list[BaseException] = []

    def work(number: int) -> None:
        claimant = Claimant(
            worker_id=make_worker(),
            queues=(GENERATE,),
            lease_seconds=600.0,
            pool=("a", "b")[number % 2],
            most_units=1 + number % 4,
        )
        try:
            while True:
                with transaction(engine) as conn:
                    jobs = queue.claim_batch(conn, claimant).jobs
                with transaction(engine) as conn:
                    most.append(_running(conn, limited))
                for job in jobs:
                    with transaction(engine) as conn:
                        queue.finish(conn, job.id, job.epoch, Outcome(result={}))
                if not jobs:
                    with transaction(engine) as conn:
                        if not conn.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.state == "queued")).first():
                            return
        except BaseException as exc:  # noqa: BLE001 - shown below
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLAIMERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=240)
    engine.dispose()
    assert failures == []
    # It was reached, or the test shows nothing.
    assert max(most) == LIMIT
    for pool in ("a", "b"):
        assert [floor.share(tenant, pool)["running"] for tenant in (limited, free)] == [0, 0]


def test_a_limit_counts_over_all_pools(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    tenant = make_tenant(max_running=2)
    floor.submit(tenant, 5)
    first = floor.take(pool="a")
    floor.take(pool="b")
    assert floor.claim(pool="a").jobs == floor.claim(pool="b").jobs == floor.claim(pool="c").jobs == ()
    floor.finish(first)
    floor.take(pool="c")


def test_a_tenant_at_its_limit_does_not_hold_up_others(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    stopped, other = make_tenant(max_running=0), make_tenant()
    floor.submit(stopped, 3)
    floor.submit(other, 3)
    assert counted(floor.owners(3)) == {other.id: 3}
    assert floor.claim().jobs == ()


def test_a_limit_that_is_lifted_counts_at_the_next_claim(floor: Floor, make_tenant: Callable[..., Tenant]) -> None:
    floor.submit(make_tenant("acme", max_running=1), 3)
    floor.take()
    assert floor.claim().jobs == ()
    floor.do(tenants.change_tenant, "acme", max_running=3)
    floor.take()
    floor.take()


def test_one_more_than_may_wait_is_refused_with_a_time_to_come_back(
    floor: Floor, make_tenant: Callable[..., Tenant]
) -> None:
    tenant = make_tenant(max_queued=2)
    floor.submit(tenant, 2)
    with pytest.raises(LimitExceeded) as refused:
        floor.submit(tenant)
    assert refused.value.retry_after > 0
    assert "2" in refused.value.detail
    floor.take()
    floor.submit(tenant)
