"""A database with a backlog of jobs, and claims from it by direct calls of the queue: no API, no worker process."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks import services
from benchmarks.services import Stack
from benchmarks.threads import run_all
from calotype import queue, tenants
from calotype.database import connect_engine, transaction
from calotype.ids import new_id
from calotype.jobs import Family, Kind
from calotype.queue import Claimant, NewJob, Outcome
from calotype.workers import WorkerInfo, register

TENANTS = 200
QUEUE = "diffusion.generate"
LEASE_SECONDS = 60.0
AGEING_THREADS = 4
MODEL = "stand-in@1"
MODEL_KEY = "stand-in@1#bench"
#: Images that a worker takes into one call.
BATCH = 16
#: Jobs that fit into one batch have one of so many keys, as when people ask for many sizes.
BATCH_KEYS = 50
#: As long as the spec of a usual job.
SPEC: dict[str, Any] = {
    "kind": "generate",
    "family": "diffusion",
    "model": MODEL,
    "input": {
        "prompt": "a logo of a blue bird over a round orange sun, flat, on white",
        "num_images": 1,
        "width": 64,
        "height": 64,
        "steps": 20,
        "guidance_scale": 3.5,
    },
}
# As many jobs as wanted, of all tenants in turn, a millisecond apart.
_FILL = """
INSERT INTO jobs (id, tenant_id, kind, family, queue, model, spec, state, priority, rank, max_attempts, model_key,
                  batch_key, batch_limit)
SELECT gen_random_uuid(), (CAST(:tenants AS uuid[]))[1 + n % :many], 'generate', 'diffusion', :queue, :model,
       CAST(:spec AS jsonb), 'queued', 5, now() - interval '1 hour' + n * interval '1 millisecond', 3, :model_key,
       'batch-' || n % :batch_keys, :batch_limit
FROM generate_series(1, :count) AS n
"""
_OPEN = "INSERT INTO tenant_queues (queue, tenant_id) SELECT :queue, unnest(CAST(:tenants AS uuid[]))"


class Backlog:
    """A fresh database of a stack's server, with ``depth`` queued jobs and a worker that claims from it."""

    def __init__(
        self,
        stack: Stack,
        parts: ExitStack,
        name: str,
        depth: int,
        *,
        owners: int = TENANTS,
        workers: int = AGEING_THREADS,
        max_running: int | None = None,
    ) -> None:
        settings = services.database(stack, name)
        self.engine = connect_engine(settings, application_name="bench", pool_size=workers + 1)
        parts.callback(self.engine.dispose)
        with transaction(self.engine) as conn:
            # Filling a million rows takes longer than any statement of the product may.
            conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
            self.owners = [
                tenants.create_tenant(conn, f"tenant-{number}", max_running=max_running).id for number in range(owners)
            ]
            self.workers = [register_worker(conn, f"worker-{number}") for number in range(workers)]
            _fill(conn, self.owners, depth)
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.execute(sa.text("SET statement_timeout = 0"))
            conn.execute(sa.text("VACUUM ANALYZE"))
            conn.execute(sa.text("CHECKPOINT"))
        self._next_jobs = zip(itertools.cycle(self.owners), itertools.count(), strict=False)

    def cycle(self, most_units: int) -> tuple[float, int]:
        """Claim, finish what was claimed, submit as much; gives the seconds of the claim and how many jobs it gave."""
        began = time.perf_counter()
        with transaction(self.engine) as conn:
            claimed = queue.claim_batch(conn, claimant(self.workers[0], most_units)).jobs
        seconds = time.perf_counter() - began
        if not claimed:
            raise AssertionError("the queue ran empty")
        for job in claimed:
            with transaction(self.engine) as conn:
                queue.finish(conn, job.id, job.epoch, Outcome(result={}))
            with transaction(self.engine) as conn:
                queue.submit(conn, _new_job(*next(self._next_jobs)))
        return seconds, len(claimed)

    def age(self, cycles: int) -> None:
        """Go through as many cycles of one job as fast as possible, from several threads."""
        # A tuple's iterator is safe to share between threads; a generator's is not.
        plan = iter(tuple(itertools.islice(self._next_jobs, cycles)))
        run_all([partial(_age, self.engine, worker, plan) for worker in self.workers])


def claimant(worker: UUID, most_units: int) -> Claimant:
    """As a worker asks that has the model loaded."""
    return Claimant(
        worker_id=worker,
        queues=(QUEUE,),
        lease_seconds=LEASE_SECONDS,
        loaded=(MODEL_KEY,),
        may_pass=True,
        most_units=most_units,
    )


def _age(engine: sa.Engine, worker: UUID, plan: Iterator[tuple[UUID, int]]) -> None:
    for owner, number in plan:
        with _unflushed(engine) as conn:
            queue.submit(conn, _new_job(owner, number))
        with _unflushed(engine) as conn:
            [job] = queue.claim_batch(conn, claimant(worker, 1)).jobs
        with _unflushed(engine) as conn:
            queue.finish(conn, job.id, job.epoch, Outcome(result={}))


@contextmanager
def _unflushed(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction whose commit does not wait for the disk.

    What ages a table are the versions of its rows, not the flushes of its log: those are left out to save time.
    """
    with transaction(engine) as conn:
        conn.execute(sa.text("SET LOCAL synchronous_commit = off"))
        yield conn


def _fill(conn: sa.Connection, owners: Sequence[UUID], count: int) -> None:
    values = {
        "tenants": list(owners),
        "many": len(owners),
        "count": count,
        "queue": QUEUE,
        "model": MODEL,
        "spec": json.dumps(SPEC),
        "model_key": MODEL_KEY,
        "batch_keys": BATCH_KEYS,
        "batch_limit": BATCH,
    }
    conn.execute(sa.text(_FILL), values)
    conn.execute(sa.text(_OPEN), {"queue": QUEUE, "tenants": list(owners)})


def register_worker(conn: sa.Connection, name: str) -> UUID:
    """The row of a worker that does not exist: claims refer to one."""
    info = WorkerInfo(
        id=new_id(), name=name, hostname="host", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="bench"
    )
    return register(conn, info).id


def _new_job(owner: UUID, number: int) -> NewJob:
    return NewJob(
        tenant_id=owner,
        kind=Kind.GENERATE,
        family=Family.DIFFUSION,
        model=MODEL,
        spec=SPEC,
        model_key=MODEL_KEY,
        batch_key=f"batch-{number % BATCH_KEYS}",
        batch_limit=BATCH,
    )
