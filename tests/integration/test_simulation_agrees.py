"""The simulator takes the same jobs, in the same order and the same batches, as claims on a real Postgres do."""

from __future__ import annotations

import random
from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import Engine

from calotype import queue
from calotype.database import transaction
from calotype.jobs import Family, Job, Kind
from calotype.queue import Claimant
from calotype.simulation import FairShare, Options, Trace, TraceJob, TraceTenant, TraceWorker, simulate
from calotype.tenants import Tenant

GENERATE, TRAIN = "diffusion.generate", "diffusion.train"
WORKERS = 14
MOST_UNITS = 6
#: Nothing ends while the claims are made: device-seconds of the simulation.
LONG = 1e6

Calls = list[list[int]]


def drawn(seed: int) -> Trace:
    """A burst of jobs of four tenants with weights, limits and priorities; some share calls."""
    draw = random.Random(seed)
    tenants = [
        TraceTenant(name=name, weight=draw.choice((0.5, 1.0, 3.0)), max_running=draw.choice((None, None, 2, 5)))
        for name in "abcd"
    ]
    jobs = []
    for _ in range(60):
        trains = draw.random() < 0.1
        batches = not trains and draw.random() < 0.6
        jobs.append(
            TraceJob(
                t=0.0,
                tenant=draw.choice("abcd"),
                queue=TRAIN if trains else GENERATE,
                seconds=LONG,
                model=draw.choice("xy"),
                units=draw.randint(1, 3),
                batch_limit=draw.choice((4, 8)) if batches else 1,
                priority=draw.choice((4, 5, 5, 6)),
            )
        )
    queues = [[GENERATE], [GENERATE, TRAIN]]
    workers = [TraceWorker(name=f"w{number}", queues=draw.choice(queues)) for number in range(WORKERS)]
    return Trace(tenants=tenants, workers=workers, jobs=jobs)


def simulated(trace: Trace) -> Calls:
    """What each worker took first, in the order in which they asked."""
    calls: Calls = []

    def watch(world: object, now: float) -> None:
        if now == 0.0:
            devices = world.devices  # type: ignore[attr-defined]
            calls.extend([job.number for job in device.call.jobs] if device.call else [] for device in devices)

    simulate(trace, Options(policy=FairShare(most_units=MOST_UNITS)), watch)
    return calls


@pytest.mark.parametrize("seed", range(6))
def test_claims_take_what_the_simulator_takes(
    seed: int,
    engine: Engine,
    make_tenant: Callable[..., Tenant],
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    trace = drawn(seed)
    owners = {one.name: make_tenant(weight=one.weight, max_running=one.max_running) for one in trace.tenants}
    numbers = {}
    for number, one in enumerate(trace.jobs):
        job = make_job(
            tenant_id=owners[one.tenant].id,
            kind=Kind(one.kind),
            family=Family.DIFFUSION,
            priority=one.priority,
            model_key=one.model,
            batch_key=f"{one.queue}:{one.model}" if one.batch_limit > 1 else None,
            units=one.units,
            batch_limit=one.batch_limit,
        )
        numbers[job.id] = number

    claimants = [
        Claimant(
            worker_id=make_worker(tuple(worker.queues), worker.name),
            queues=worker.queues,
            lease_seconds=600.0,
            most_units=MOST_UNITS,
        )
        for worker in trace.workers
    ]
    # At one moment, as in the simulation: in one transaction no time passes.
    with transaction(engine) as conn:
        claimed = [[numbers[job.id] for job in queue.claim_batch(conn, one).jobs] for one in claimants]

    assert claimed == simulated(trace)
    assert any(len(call) > 1 for call in claimed)
