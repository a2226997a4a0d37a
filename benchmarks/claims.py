"""What a claim costs as the queue grows: claim and finish at 1,000 and at 100,000 queued jobs, commits included."""

from __future__ import annotations

import statistics
import time
from uuid import UUID

import sqlalchemy as sa

from benchmarks.services import running
from calotype import queue, tenants, workers
from calotype.database import connect_engine, transaction
from calotype.ids import new_id
from calotype.queue import Outcome

DEPTHS = (1_000, 100_000)
CLAIMS = 300
QUEUE = "diffusion.generate"

FILL = """
INSERT INTO jobs (id, tenant_id, kind, family, queue, model, spec, state, priority, rank, max_attempts)
SELECT gen_random_uuid(), :tenant, 'generate', 'diffusion', 'diffusion.generate', 'm@1', '{}', 'queued', 5,
       now() - interval '5 minutes' + n * interval '1 millisecond', 3
FROM generate_series(1, :count) AS n
"""


def main() -> None:
    with running() as settings:
        engine = connect_engine(settings, application_name="bench")
        medians = {}
        for depth in DEPTHS:
            worker = _fill(engine, depth)
            medians[depth] = _claim_and_finish(engine, worker)
            print(f"{depth:>8,} queued: claim p50 {medians[depth] * 1e3:.2f} ms")
        small, large = (medians[depth] for depth in DEPTHS)
        print(f"ratio {DEPTHS[1]:,} to {DEPTHS[0]:,}: {large / small:.2f}")
        engine.dispose()


def _fill(engine: sa.Engine, depth: int) -> UUID:
    with transaction(engine) as conn:
        conn.execute(sa.text("TRUNCATE jobs, tenants, workers CASCADE"))
        tenant = tenants.create_tenant(conn, "bench")
        conn.execute(sa.text(FILL), {"tenant": tenant.id, "count": depth})
        info = workers.WorkerInfo(
            id=new_id(), name="w", hostname="h", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="bench"
        )
        worker = workers.register(conn, info)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("VACUUM ANALYZE jobs"))
    return worker.id


def _claim_and_finish(engine: sa.Engine, worker: UUID) -> float:
    """Median seconds of a claim transaction."""
    seconds = []
    for _ in range(CLAIMS):
        began = time.perf_counter()
        with transaction(engine) as conn:
            job = queue.claim(conn, worker, (QUEUE,), 60.0)
        seconds.append(time.perf_counter() - began)
        if job is None:
            raise AssertionError("the queue ran empty")
        with transaction(engine) as conn:
            queue.finish(conn, job.id, job.epoch, Outcome(result={}))
    return statistics.median(seconds)
