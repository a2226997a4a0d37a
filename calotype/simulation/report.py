"""What came out of a simulation, as numbers: waits, fairness, loads, batches, use of the devices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from calotype.simulation.engine import Result
from calotype.simulation.world import SimJob

Json = dict[str, Any]
#: By which property of a job waits are grouped.
GROUPS: dict[str, Callable[[SimJob], str]] = {
    "tenant": lambda job: job.spec.tenant,
    "priority": lambda job: str(job.spec.priority),
    "queue": lambda job: job.spec.queue,
}


def report(result: Result) -> Json:
    """Everything as JSON; times are seconds, ``waits`` from submission to the first start."""
    jobs = result.world.jobs
    return {
        "jobs": {"submitted": len(jobs), **_states(jobs)},
        "makespan_seconds": _rounded(result.makespan),
        "waits": {"all": waits(jobs), **{f"by_{name}": _grouped(jobs, of) for name, of in GROUPS.items()}},
        "fairness": {pool: _fairness(result, pool) for pool in result.world.pools},
        "devices": _devices(result),
        "batches": _batches(result),
    }


def waits(jobs: Iterable[SimJob]) -> Json:
    """Of the jobs that started; percentiles by nearest rank."""
    found = sorted(job.started_at - job.spec.t for job in jobs if job.started_at is not None)
    if not found:
        return {"jobs": 0, "p50": None, "p95": None, "p99": None, "max": None}
    at = {f"p{part}": _rounded(found[math.ceil(part / 100 * len(found)) - 1]) for part in (50, 95, 99)}
    return {"jobs": len(found), **at, "max": _rounded(found[-1])}


def _grouped(jobs: Sequence[SimJob], of: Callable[[SimJob], str]) -> Json:
    groups: dict[str, list[SimJob]] = {}
    for job in jobs:
        groups.setdefault(of(job), []).append(job)
    return {name: waits(members) for name, members in sorted(groups.items())}


def _states(jobs: Iterable[SimJob]) -> Json:
    counts: dict[str, int] = {}
    for job in jobs:
        counts[str(job.state)] = counts.get(str(job.state), 0) + 1
    return dict(sorted(counts.items()))


def _fairness(result: Result, pool: str) -> Json:
    world, accounts = result.world, result.fairness.accounts[pool]
    index = result.fairness.jain(pool)
    given: dict[str, float] = dict.fromkeys(world.tenants, 0.0)
    for job in world.jobs:
        if job.pool == pool:
            given[job.spec.tenant] += job.gpu_seconds
    return {
        "jain_index": _rounded(index, 4) if index is not None else None,
        "max_lag_seconds": _rounded(max((account.most_lag for account in accounts.values()), default=0.0)),
        "tenants": {
            name: {
                "weight": tenant.weight,
                "gpu_seconds": _rounded(given[name]),
                "gpu_seconds_over_weight": _rounded(given[name] / tenant.weight),
                "gpu_seconds_while_short": _rounded(accounts[name].got),
                "fair_while_short": _rounded(accounts[name].fair),
                "max_lag_seconds": _rounded(accounts[name].most_lag),
            }
            for name, tenant in sorted(world.tenants.items())
        },
    }


def _devices(result: Result) -> Json:
    devices = result.world.devices
    busy, loading = sum(one.busy_seconds for one in devices), sum(one.loading_seconds for one in devices)
    there = result.makespan * len(devices)
    return {
        "count": len(devices),
        "utilisation": _rounded(busy / there, 4) if there else None,
        "computing": _rounded((busy - loading) / there, 4) if there else None,
        "model_loads": sum(one.loads for one in devices),
        "loading_seconds": _rounded(loading),
        "gpu_seconds": _rounded(busy),
    }


def _batches(result: Result) -> Json:
    calls = sum(result.batches.values())
    jobs = sum(size * count for size, count in result.batches.items())
    return {
        "calls": calls,
        "mean_jobs": _rounded(jobs / calls, 2) if calls else None,
        "jobs_per_call": {str(size): count for size, count in sorted(result.batches.items())},
    }


def _rounded(value: float, digits: int = 3) -> float:
    return round(value, digits)
