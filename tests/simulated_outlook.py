"""What an explanation would know of a job at one moment of a simulation: the counterpart of its queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from calotype.explain import forecast
from calotype.explain.forecast import NOTHING, Load, Outlook, Rival, Work
from calotype.simulation.world import ANY_MODEL, Device, SimJob, World, work_of

#: How far back demand is looked at, seconds.
LATELY = 900.0


def outlook_of(world: World, job: SimJob, now: float) -> Outlook:
    """``job`` waits."""
    tenant = world.tenants[job.spec.tenant]
    serving = [one for one in world.devices if job.spec.queue in one.spec.queues and not one.down]
    queues = serving[0].spec.queues
    everyone = {name: list(_waiting(world, name, queues)) for name in world.tenants}
    needed = {one.spec.model for jobs in everyone.values() for one in jobs}
    loaded = {model for device in serving for model in device.loaded}
    cold = any(job.spec.model not in one.loaded for one in serving)
    mine = [one for one in world.devices if one.call is not None and _works_for(one, tenant.name)]
    return Outlook(
        workers=[_left(world, one, now) for one in serving],
        vtime=world.vtime(serving[0].spec.pool, tenant.name, world.clock(serving[0].spec.pool, queues)),
        weight=tenant.weight,
        ahead=_sum(world, (one for one in everyone[tenant.name] if one.rank < job.rank)),
        rivals=list(_rivals(world, serving[0], tenant.name, everyone, now)),
        limit=tenant.max_running,
        running=[_left(world, one, now) for one in mine] if tenant.max_running is not None else (),
        out_of_turn=_out_of_turn(world, job, queues, others=len(needed) > 1, loaded=job.spec.model in loaded),
        alike=_sum(world, _alike(world, job)),
        passed_over=30.0 if cold and needed & loaded else 0.0,
    )


def _rivals(world: World, device: Device, own: str, waiting: dict[str, list[SimJob]], now: float) -> Iterator[Rival]:
    demand: dict[str, float] = {}
    for job in world.jobs:
        if job.finished_at is not None and now - LATELY < job.finished_at <= now:
            demand[job.spec.tenant] = demand.get(job.spec.tenant, 0.0) + job.gpu_seconds / LATELY
    for name, tenant in world.tenants.items():
        if name != own:
            yield Rival(
                vtime=world.vtime(device.spec.pool, name, world.clock(device.spec.pool, device.spec.queues)),
                weight=tenant.weight,
                waiting=_sum(world, waiting[name]) if world.has_room(name) else NOTHING,
                arriving=demand.get(name, 0.0),
            )


def _out_of_turn(world: World, job: SimJob, queues: Sequence[str], *, others: bool, loaded: bool) -> Load | None:
    loads = []
    if alike := _alike(world, job):
        before = _sum(world, alike)
        call = before.usual * job.spec.batch_limit / job.spec.units
        loads.append(replace(before, low=max(0.0, before.low - call)))
    if others and loaded:
        same = (one for queue in queues for one in world.waiting.by_model[queue, job.spec.model])
        loads.append(_sum(world, (one for one in same if one.rank < job.rank)))
    return min(loads, key=lambda load: load.least, default=None)


def _alike(world: World, job: SimJob) -> list[SimJob]:
    """Better-ranked jobs that can share calls with it."""
    if job.batch_key is None:
        return []
    return [one for one in world.waiting.by_batch[job.batch_key] if one.rank < job.rank]


def _waiting(world: World, tenant: str, queues: Iterable[str]) -> Iterator[SimJob]:
    return (job for queue in queues for job in world.waiting.by_tenant[queue, tenant])


def _works_for(device: Device, tenant: str) -> bool:
    return device.call is not None and any(job.spec.tenant == tenant for job in device.call.jobs)


def _left(world: World, device: Device, now: float) -> Load:
    if device.call is None:
        return NOTHING
    return forecast.remaining(_sum(world, device.call.jobs), now - device.call.began)


def _sum(world: World, jobs: Iterable[SimJob]) -> Load:
    return sum((_load(world, job) for job in jobs), NOTHING)


def _load(world: World, job: SimJob) -> Load:
    spec, work = job.spec, work_of(job.spec)
    own, others = (world.rates.get((spec.queue, model)) for model in (spec.model, ANY_MODEL))
    return forecast.load_of(Work(jobs=1, work=work, squares=work**2), spec.kind, own, others)
