"""Which job a device takes: by the rules of the product, or as a plain queue would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from calotype.queue.claiming import MOST_LOOKED_AT
from calotype.scheduling import fill_batch, turn
from calotype.simulation.world import Device, SimJob, World


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen job, then those that share its call."""

    jobs: tuple[SimJob, ...]
    #: Another job's turn was passed over for a loaded model.
    passed: bool = False


class Policy(Protocol):
    """Chooses from what waits; changes nothing."""

    def choose(self, world: World, device: Device, now: float) -> Choice | None: ...


@dataclass(frozen=True, kw_only=True)
class FairShare:
    """The rules of :mod:`calotype.scheduling`, put together as a claim does."""

    #: Units that a worker takes into one call; 1: no batches.
    most_units: int = 16

    def choose(self, world: World, device: Device, now: float) -> Choice | None:
        for tenant in by_turn(world, device):
            first = world.waiting.first(tenant, device.spec.queues)
            if first is None:
                continue
            if first.spec.model and first.spec.model not in device.loaded and device.affinity.may_pass(now):
                loaded = _best_loaded(world, device)
                if loaded is not None:
                    return Choice(jobs=self._batch(world, loaded), passed=True)
            return Choice(jobs=self._batch(world, first))
        return None

    def _batch(self, world: World, first: SimJob) -> tuple[SimJob, ...]:
        limit = min(first.spec.batch_limit, self.most_units)
        if first.batch_key is None or first.attempt > 0 or first.spec.units >= limit:
            return (first,)
        alike = (job for job in world.waiting.by_batch[first.batch_key] if job.attempt == 0 and job is not first)
        waiting = list(_within_limits(world, first, islice(alike, MOST_LOOKED_AT)))
        places = fill_batch(first.spec.units, limit, [job.spec.units for job in waiting])
        return (first, *(waiting[place] for place in places))


def by_turn(world: World, device: Device) -> Sequence[str]:
    """The tenants that have something for the device and room for it, in the order of their turns."""
    pool, queues = device.spec.pool, device.spec.queues
    waiting = [name for name in world.tenants if world.waiting.of(name, queues) and world.has_room(name)]
    shares = world.shares[pool]
    clock = world.clock(pool, queues)

    def key(name: str) -> tuple[float, bool, float, int]:
        share, own = shares[name], world.standing(pool, name).vtime
        return turn(world.vtime(pool, name, clock), idle=share.idle, running=share.running, own=own)

    return sorted(waiting, key=key)


def _best_loaded(world: World, device: Device) -> SimJob | None:
    lines = [world.waiting.by_model[queue, model] for queue in device.spec.queues for model in device.loaded]
    seen = (job for line in lines for job in islice(line, MOST_LOOKED_AT))
    return min((job for job in seen if world.has_room(job.spec.tenant)), key=lambda job: job.rank, default=None)


def _within_limits(world: World, first: SimJob, waiting: Iterator[SimJob]) -> Iterator[SimJob]:
    taken = {first.spec.tenant: 1}
    for job in waiting:
        tenant = job.spec.tenant
        limit, already = world.tenants[tenant].max_running, taken.get(tenant, 0)
        if limit is None or world.running[tenant] + already < limit:
            taken[tenant] = already + 1
            yield job


class Fifo:
    """As a plain queue would: whoever came first, one at a time, whoever it belongs to. Limits are kept."""

    def choose(self, world: World, device: Device, now: float) -> Choice | None:
        lines = [line for (queue, _), line in world.waiting.by_tenant.items() if queue in device.spec.queues]
        open_jobs = (job for line in lines for job in line if world.has_room(job.spec.tenant))
        first = min(open_jobs, key=lambda job: (job.available_at, job.number), default=None)
        return Choice(jobs=(first,)) if first is not None else None
