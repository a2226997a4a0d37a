"""A floor of devices for tests of the queue: jobs that take as long as the test says, without waiting for it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import queue, tables
from calotype.database import transaction
from calotype.jobs import Family, Job, Kind
from calotype.queue import Claimant, Claimed, NewJob, Outcome
from calotype.tenants import Tenant

GENERATE, TRAIN = "diffusion.generate", "diffusion.train"

# A job that runs, and what its tenant's share says of those that do.
_BEGAN_EARLIER = sa.text("""
WITH was AS (SELECT id, tenant_id, pool, batch_share, started_at FROM jobs WHERE id = :job_id),
job AS (
    UPDATE jobs j SET started_at = clock_timestamp() - :seconds FROM was WHERE j.id = was.id RETURNING j.started_at)
UPDATE shares s SET device_starts = s.device_starts
    + was.batch_share * (date_part('epoch', job.started_at) - date_part('epoch', was.started_at))
FROM was, job WHERE s.tenant_id = was.tenant_id AND s.pool = was.pool
""").bindparams(sa.bindparam("seconds", type_=sa.Interval))


@dataclass
class Floor:
    """What the tests do to the queue, each in a transaction of its own."""

    engine: Engine
    claimant: Claimant

    def submit(self, tenant: Tenant, count: int = 1, **values: Any) -> list[Job]:
        """So many jobs of a tenant, in one transaction."""
        defaults: dict[str, Any] = {
            "tenant_id": tenant.id,
            "kind": Kind.GENERATE,
            "family": Family.DIFFUSION,
            "model": "starter-diffusion@1",
            "spec": {"kind": "generate", "input": {"prompt": "a logo"}},
        }
        with transaction(self.engine) as conn:
            return [queue.submit(conn, NewJob(**{**defaults, **values})) for _ in range(count)]

    def claim(self, **changes: Any) -> Claimed:
        with transaction(self.engine) as conn:
            return queue.claim_batch(conn, replace(self.claimant, **changes))

    def take(self, **changes: Any) -> Job:
        """A claim that gives exactly one job."""
        (job,) = self.claim(**changes).jobs
        return job

    def finish(self, job: Job, seconds: float = 100.0) -> Job:
        """As if it had taken so long; by default so long that the real time of a test is nothing beside it."""
        return self.left(job, seconds, queue.finish, Outcome(result={}))

    def left(self, job: Job, seconds: float, how: Callable[..., Job], *arguments: Any) -> Job:
        """Like :meth:`finish`, by any way out of a worker's hands."""
        with transaction(self.engine) as conn:
            conn.execute(_BEGAN_EARLIER, {"job_id": job.id, "seconds": timedelta(seconds=seconds)})
            return how(conn, job.id, job.epoch, *arguments)

    def ran(self, job: Job, seconds: float) -> None:
        """As if it had run for so long by now."""
        values = {"job_id": job.id, "seconds": timedelta(seconds=seconds)}
        self.do(lambda conn: conn.execute(_BEGAN_EARLIER, values))

    def do(self, action: Callable[..., Any], *arguments: Any, **values: Any) -> Any:
        with transaction(self.engine) as conn:
            return action(conn, *arguments, **values)

    def change(self, job: Job, **values: Any) -> None:
        """Writes columns of a job behind the queue's back."""
        self.do(lambda conn: conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(**values)))

    def job(self, job_id: UUID) -> Job:
        with transaction(self.engine) as conn:
            row = conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).mappings().one()
        return Job.from_row(row)

    def share(self, tenant: Tenant, pool: str = "default") -> Any:
        """The row of ``shares``."""
        table = tables.shares
        with transaction(self.engine) as conn:
            mine = sa.select(table).where(table.c.tenant_id == tenant.id, table.c.pool == pool)
            return conn.execute(mine).mappings().one()

    def owners(self, claims: int, seconds: float = 100.0, **changes: Any) -> list[UUID]:
        """Whose jobs so many claims gave, each finished before the next."""
        owners = []
        for _ in range(claims):
            job = self.take(**changes)
            self.finish(job, seconds)
            owners.append(job.tenant_id)
        return owners


@dataclass
class Devices:
    """Several devices that work at once, on a clock of the test's own."""

    floor: Floor
    many: int
    seconds: Callable[[Job], float]
    _busy: list[tuple[float, int, Job]] = field(default_factory=list)

    def run(self, jobs: int) -> dict[UUID, float]:
        """Lets so many jobs end; gives the device-seconds that each tenant had."""
        had: dict[UUID, float] = {}
        numbers, now = itertools.count(), 0.0
        for _ in range(jobs):
            while len(self._busy) < self.many:
                job = self.floor.take()
                heapq.heappush(self._busy, (now + self.seconds(job), next(numbers), job))
            now, _, job = heapq.heappop(self._busy)
            had[job.tenant_id] = had.get(job.tenant_id, 0.0) + self.seconds(job)
            self.floor.finish(job, self.seconds(job))
        return had


def counted(owners: Sequence[UUID]) -> dict[UUID, int]:
    return {owner: owners.count(owner) for owner in owners}
