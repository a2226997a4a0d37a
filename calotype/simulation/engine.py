"""The clock of a simulation: what happens when, from one event to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from calotype.jobs import State
from calotype.queue.waiting import backoff
from calotype.scheduling import Rate
from calotype.simulation.fairness import Fairness
from calotype.simulation.policies import Choice, FairShare, Policy
from calotype.simulation.trace import Trace, TraceOutage, check
from calotype.simulation.world import Call, Device, SimJob, World

Watch = Callable[[World, float], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the workers and the reconciler are set up; times are seconds."""

    policy: Policy = field(default_factory=FairShare)
    affinity_seconds: float = 30.0
    affinity_streak: int = 8
    lease_seconds: float = 60.0
    retry_seconds: float = 10.0
    #: What is known at the start, by queue and model.
    rates: dict[tuple[str, str], Rate] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Result:
    """How it went."""

    #: Jobs, devices, shares and rates as they are at the end.
    world: World
    fairness: Fairness
    #: Calls of a model, by how many jobs shared them.
    batches: dict[int, int]
    #: Seconds from the first submission to the last end.
    makespan: float


def simulate(trace: Trace, options: Options | None = None, watch: Watch | None = None) -> Result:
    """Plays a trace to its end; the same trace always gives the same result.

    ``watch`` is called with the world after each moment at which something happened.

    Raises:
        Invalid: the parts of the trace do not fit together.
    """
    check(trace)
    return _Simulation(trace, options or Options()).run(watch)


class _Simulation:
    def __init__(self, trace: Trace, options: Options) -> None:
        self._options = options
        self._world = World(trace, longest_wait=options.affinity_seconds, longest_streak=options.affinity_streak)
        self._world.rates.update(options.rates)
        self._fairness = Fairness(self._world)
        self._batches: dict[int, int] = {}
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._count = 0
        devices = {device.spec.name: device for device in self._world.devices}
        for job in self._world.jobs:
            self._at(job.spec.t, partial(self._arrive, job))
        for outage in trace.outages:
            self._at(outage.t, partial(self._lose, devices[outage.worker], outage))

    def run(self, watch: Watch | None) -> Result:
        while self._events:
            now = self._events[0][0]
            self._fairness.advance(now)
            self._world.now = now
            # Everything that happens at the same moment is known before a device chooses.
            while self._events and self._events[0][0] == now:
                heapq.heappop(self._events)[2](now)
            self._dispatch(now)
            self._fairness.note()
            if watch is not None:
                watch(self._world, now)
        jobs = self._world.jobs
        ends = [job.finished_at for job in jobs if job.finished_at is not None]
        makespan = max(ends) - min(job.spec.t for job in jobs) if ends else 0.0
        return Result(world=self._world, fairness=self._fairness, batches=self._batches, makespan=makespan)

    def _at(self, time: float, happens: Callable[[float], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, happens))

    # What happens

    def _arrive(self, job: SimJob, now: float) -> None:
        self._world.waiting.add(job)
        if job.spec.deadline_seconds is not None:
            self._at(now + job.spec.deadline_seconds, partial(self._expire, job))

    def _expire(self, job: SimJob, now: float) -> None:
        # A deadline is for the first start only.
        if job.state is State.QUEUED and job.started_at is None:
            self._world.waiting.remove(job)
            job.state, job.finished_at = State.EXPIRED, now
            self._world.note_idle(job.spec.tenant)

    def _become_available(self, job: SimJob, _now: float) -> None:
        self._world.waiting.add(job)

    def _complete(self, device: Device, call: Call, now: float) -> None:
        if device.call is not call:
            return  # lost with its worker
        self._free(device, now)
        for job in call.jobs:
            self._leave(job, (now - job.claimed_at) * job.batch_share, now)

    def _leave(self, job: SimJob, seconds: float, now: float) -> None:
        if job.failed < job.spec.failures:
            job.failed += 1
            self._fail(job, now)
        else:
            job.state, job.finished_at = State.SUCCEEDED, now
            if job.attempt == 1 and job.gpu_seconds == 0.0:
                self._world.observe(job, seconds)
        self._world.settle(job, seconds)

    def _fail(self, job: SimJob, now: float) -> None:
        if job.attempt >= job.spec.max_attempts:
            job.state, job.finished_at = State.FAILED, now
            return
        job.available_at = now + backoff(job.attempt, self._options.retry_seconds, jitter=0.5)
        job.state = State.QUEUED
        self._at(job.available_at, partial(self._become_available, job))

    def _lose(self, device: Device, outage: TraceOutage, now: float) -> None:
        device.down, device.down_until = True, max(device.down_until, now + outage.seconds)
        device.loaded.clear()
        if device.call is not None:
            jobs = device.call.jobs
            self._free(device, now)
            self._at(now + self._options.lease_seconds, partial(self._reap, jobs))
        self._at(now + outage.seconds, partial(self._come_back, device))

    def _come_back(self, device: Device, now: float) -> None:
        device.down = now < device.down_until

    def _reap(self, jobs: Iterable[SimJob], now: float) -> None:
        for job in jobs:
            if job.attempt < job.spec.max_attempts:
                job.state = State.QUEUED
                self._world.waiting.add(job)
            else:
                job.state, job.finished_at = State.FAILED, now
            self._world.settle(job, (now - job.claimed_at) * job.batch_share)

    # What devices do

    def _dispatch(self, now: float) -> None:
        for device in self._world.devices:
            if device.call is None and not device.down:
                choice = self._options.policy.choose(self._world, device, now)
                if choice is not None:
                    self._start(device, choice, now)

    def _start(self, device: Device, choice: Choice, now: float) -> None:
        device.affinity.note(now, passed=choice.passed)
        total = sum(job.spec.units for job in choice.jobs)
        pool, queues = device.spec.pool, device.spec.queues
        # All as it was before the first is taken.
        clock = self._world.clock(pool, queues)
        clocks = {job.spec.tenant: self._world.clock(pool, queues, without=job.spec.tenant) for job in choice.jobs}
        for job in choice.jobs:
            job.batch_jobs = len(choice.jobs)
            part = job.spec.units / total
            self._world.take(device, job, part, clocks[job.spec.tenant])
        self._world.end_pauses(device, clock)
        loading = device.load(choice.jobs[0].spec.model)
        seconds = loading + duration(device, choice.jobs)
        device.call = Call(jobs=choice.jobs, began=now, loading=loading, seconds=seconds)
        self._batches[len(choice.jobs)] = self._batches.get(len(choice.jobs), 0) + 1
        self._at(now + seconds, partial(self._complete, device, device.call))

    def _free(self, device: Device, now: float) -> None:
        if device.call is not None:
            device.busy_seconds += now - device.call.began
            device.loading_seconds += min(now - device.call.began, device.call.loading)
        device.call = None


def duration(device: Device, jobs: Iterable[SimJob]) -> float:
    """Seconds that a device needs for a call, its model loaded."""
    alone = sorted((job.spec.seconds for job in jobs), reverse=True)
    return (alone[0] + device.spec.batch_cost * sum(alone[1:])) / device.spec.speed
