"""What is where during a simulation: jobs, what waits, shares, devices. The counterpart of the tables."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from calotype.jobs import State
from calotype.scheduling import (
    Affinity,
    Rate,
    Standing,
    behind,
    charge,
    effective_vtime,
    estimate_seconds,
    has_room,
    head_start,
    pool_clock,
    raised,
    same_line,
    standing,
)
from calotype.simulation.trace import Trace, TraceJob, TraceTenant, TraceWorker

#: Key of the rate over all models of a queue, as in the table of rates.
ANY_MODEL = ""


@dataclass(eq=False, kw_only=True)
class SimJob:
    """A job of the trace on its way; the counterpart of a row of ``jobs``."""

    spec: TraceJob
    #: Its place in the trace.
    number: int
    #: Seconds; not claimed before.
    available_at: float
    state: State = State.QUEUED
    attempt: int = 0
    failed: int = 0
    #: Of the first claim, and of the end.
    started_at: float | None = None
    finished_at: float | None = None
    #: Of the latest claim.
    claimed_at: float = 0.0
    pool: str = ""
    charged: float = 0.0
    batch_share: float = 1.0
    #: Jobs in the call.
    batch_jobs: int = 0
    gpu_seconds: float = 0.0

    @property
    def rank(self) -> tuple[float, int]:
        """Static while it waits; of equal ranks the earlier job goes first."""
        return self.available_at - head_start(self.spec.priority).total_seconds(), self.number

    @cached_property
    def batch_key(self) -> tuple[str, str, str] | None:
        """Equal ones share calls; None: runs alone."""
        spec = self.spec
        return (spec.queue, spec.model, spec.batch or "") if spec.batch_limit > 1 else None


class Line:
    """Jobs in the order of their ranks."""

    def __init__(self) -> None:
        self._entries: list[tuple[tuple[float, int], SimJob]] = []

    def add(self, job: SimJob) -> None:
        insort(self._entries, (job.rank, job), key=_rank)

    def remove(self, job: SimJob) -> None:
        place = bisect_left(self._entries, job.rank, key=_rank)
        if place == len(self._entries) or self._entries[place][1] is not job:
            raise AssertionError(f"job {job.number} does not wait here")
        del self._entries[place]

    def __iter__(self) -> Iterator[SimJob]:
        return (job for _, job in self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _rank(entry: tuple[tuple[float, int], SimJob]) -> tuple[float, int]:
    return entry[0]


class Waiting:
    """Jobs that may run now, looked up as the indexes of ``jobs`` do."""

    def __init__(self) -> None:
        self.by_tenant: defaultdict[tuple[str, str], Line] = defaultdict(Line)
        self.by_model: defaultdict[tuple[str, str], Line] = defaultdict(Line)
        self.by_batch: defaultdict[tuple[str, str, str], Line] = defaultdict(Line)

    def add(self, job: SimJob) -> None:
        for line in self._lines(job):
            line.add(job)

    def remove(self, job: SimJob) -> None:
        for line in self._lines(job):
            line.remove(job)

    def _lines(self, job: SimJob) -> Iterator[Line]:
        yield self.by_tenant[job.spec.queue, job.spec.tenant]
        if job.spec.model:
            yield self.by_model[job.spec.queue, job.spec.model]
        if job.batch_key is not None:
            yield self.by_batch[job.batch_key]

    def of(self, tenant: str, queues: Sequence[str]) -> int:
        """How many of the tenant wait in these queues."""
        return sum(len(self.by_tenant[queue, tenant]) for queue in queues if (queue, tenant) in self.by_tenant)

    def first(self, tenant: str, queues: Sequence[str]) -> SimJob | None:
        """The tenant's best-ranked job."""
        lines = [self.by_tenant[queue, tenant] for queue in queues if (queue, tenant) in self.by_tenant]
        return min((job for line in lines for job in _head(line)), key=lambda job: job.rank, default=None)


def _head(line: Line) -> Iterator[SimJob]:
    for job in line:
        yield job
        return


@dataclass(kw_only=True)
class Share:
    """What a tenant has had of a pool; a row of ``shares``."""

    #: None before its first job there.
    vtime: float | None = None
    #: The same without what is charged for the jobs that run.
    settled: float = 0.0
    #: What is in vtime beyond both: by how much running jobs had taken longer than was charged, at the latest claims.
    overdue: float = 0.0
    running: int = 0
    #: Parts of devices that these take up, and the sum of the parts, each times its beginning.
    devices: float = 0.0
    device_starts: float = 0.0
    idle: bool = True
    #: What it was owed at its latest claim.
    lag: float = 0.0
    #: Of the worker that took a job last.
    queues: Sequence[str] = ()


@dataclass(eq=False, kw_only=True)
class Call:
    """What a device is doing: one job, or several that share a call."""

    jobs: tuple[SimJob, ...]
    began: float
    #: Seconds of loading the model, and of it all.
    loading: float
    seconds: float


@dataclass(eq=False, kw_only=True)
class Device:
    """A worker."""

    spec: TraceWorker
    affinity: Affinity
    #: Least recently used first.
    loaded: OrderedDict[str, None] = field(default_factory=OrderedDict)
    call: Call | None = None
    down_until: float = 0.0
    down: bool = False
    busy_seconds: float = 0.0
    loading_seconds: float = 0.0
    loads: int = 0

    def load(self, model: str) -> float:
        """Seconds until the model is there; the least recently used ones make room."""
        if not model or model in self.loaded:
            self.loaded.pop(model, None)
            seconds = 0.0
        else:
            self.loads += 1
            seconds = self.spec.load_seconds
        if model:
            self.loaded[model] = None
        while len(self.loaded) > self.spec.memory:
            self.loaded.popitem(last=False)
        return seconds


class World:
    """All of it at one moment."""

    def __init__(self, trace: Trace, *, longest_wait: float, longest_streak: int) -> None:
        #: Seconds.
        self.now = 0.0
        self.tenants: dict[str, TraceTenant] = {tenant.name: tenant for tenant in trace.tenants}
        self.devices = [
            Device(spec=worker, affinity=Affinity(longest_wait=longest_wait, longest_streak=longest_streak))
            for worker in trace.workers
        ]
        self.jobs = [SimJob(spec=spec, number=number, available_at=spec.t) for number, spec in enumerate(trace.jobs)]
        self.waiting = Waiting()
        self.running: Counter[str] = Counter()
        self.rates: dict[tuple[str, str], Rate] = {}
        self.pools = {
            pool: sorted({queue for worker in trace.workers if worker.pool == pool for queue in worker.queues})
            for pool in sorted({worker.pool for worker in trace.workers})
        }
        self.shares = {pool: {tenant.name: Share() for tenant in trace.tenants} for pool in self.pools}

    def clock(self, pool: str, queues: Sequence[str], without: str | None = None) -> float | None:
        """The virtual time that the pool has come to for workers of these queues, as if one tenant did not wait."""
        shares = self.shares[pool]
        known = {name: self.standing(pool, name) for name, share in shares.items() if share.vtime is not None}
        waiting = (
            one
            for name, one in known.items()
            if name != without and not shares[name].idle and self.has_room(name) and self.waiting.of(name, queues)
        )
        line = [one for name, one in known.items() if same_line(shares[name].queues, queues)]
        return pool_clock(waiting=waiting, line=line, known=known.values())

    def standing(self, pool: str, tenant: str) -> Standing:
        """Of a tenant that had something of the pool."""
        share = self.shares[pool][tenant]
        return standing(
            vtime=share.vtime or 0.0,
            settled=share.settled,
            device_seconds=max(0.0, share.devices * self.now - share.device_starts),
            weight=self.tenants[tenant].weight,
            running=share.running,
        )

    def vtime(self, pool: str, tenant: str, clock: float | None) -> float:
        """The tenant's effective virtual time."""
        share = self.shares[pool][tenant]
        own = self.standing(pool, tenant) if share.vtime is not None else None
        return effective_vtime(own, idle=share.idle, floor=clock, lag=share.lag)

    def has_room(self, tenant: str) -> bool:
        return has_room(self.running[tenant], self.tenants[tenant].max_running)

    def room(self, tenant: str) -> int:
        """How many more of its jobs may run."""
        limit = self.tenants[tenant].max_running
        return len(self.jobs) if limit is None else max(0, limit - self.running[tenant])

    def estimate(self, job: SimJob) -> float:
        """Device-seconds that the job will take, by what is known."""
        spec = job.spec
        rates = (self.rates.get((spec.queue, spec.model)), self.rates.get((spec.queue, ANY_MODEL)))
        return estimate_seconds(work_of(spec), spec.kind, rates)

    def take(self, device: Device, job: SimJob, part: float, clock: float | None) -> None:
        """The claim: running, and charged by estimate. ``clock`` is the pool's, as if the tenant did not wait."""
        pool, tenant = device.spec.pool, job.spec.tenant
        share, own = self.shares[pool][tenant], self.standing(pool, tenant)
        passed = raised(own.given, floor=clock, lag=share.lag) if share.idle else 0.0
        overdue = own.vtime - (share.vtime or 0.0)
        job.charged = charge(self.estimate(job), self.tenants[tenant].weight)
        share.vtime = (share.vtime or 0.0) + passed + overdue + job.charged
        share.settled += passed
        share.overdue += overdue
        share.lag = behind(own.given + passed, floor=clock)
        share.devices += part
        share.device_starts += part * self.now
        share.running += 1
        self.running[tenant] += 1
        self.waiting.remove(job)
        # With nothing waiting, or at its limit, it could not use more, and does not save up time meanwhile.
        waits = self.waiting.of(tenant, sorted({*share.queues, *device.spec.queues}))
        share.idle = not self.has_room(tenant) or not waits
        share.queues = device.spec.queues
        job.state, job.pool, job.batch_share, job.claimed_at = State.RUNNING, pool, part, self.now
        job.attempt += 1
        job.started_at = self.now if job.started_at is None else job.started_at

    def settle(self, job: SimJob, seconds: float) -> None:
        """Out of a worker's hands, its state changed already: what was charged is replaced by what was measured."""
        tenant = job.spec.tenant
        share, took = self.shares[job.pool][tenant], charge(seconds, self.tenants[tenant].weight)
        share.running -= 1
        self.running[tenant] -= 1
        # What the next claims were charged with because this job took longer.
        repaid = min(share.overdue, max(0.0, took - job.charged)) if share.running else share.overdue
        share.vtime = (share.vtime or 0.0) + took - job.charged - repaid
        share.overdue -= repaid
        if share.running:
            share.settled += took
            share.devices -= job.batch_share
            share.device_starts -= job.batch_share * job.claimed_at
        else:
            # All is settled, and no rounding is carried on.
            share.settled, share.devices, share.device_starts = share.vtime, 0.0, 0.0
        job.gpu_seconds += seconds
        if share.idle and self._could_run(tenant, share.queues):
            self._end_pause(job.pool, tenant, self.clock(job.pool, share.queues))
        self.note_idle(tenant)

    def end_pauses(self, device: Device, clock: float | None) -> None:
        """Whose turn has to wait, for what its jobs that run are charged, is idle no longer."""
        pool, queues = device.spec.pool, device.spec.queues
        for tenant, share in self.shares[pool].items():
            waits_for_turn = share.idle and share.running > 0 and (share.vtime or 0.0) > (clock or 0.0)
            if waits_for_turn and self._could_run(tenant, sorted({*share.queues, *queues})):
                self._end_pause(pool, tenant, clock)

    def _could_run(self, tenant: str, queues: Sequence[str]) -> bool:
        return self.has_room(tenant) and self.waiting.of(tenant, queues) > 0

    def _end_pause(self, pool: str, tenant: str, clock: float | None) -> None:
        share = self.shares[pool][tenant]
        passed = raised(self.standing(pool, tenant).given, floor=clock, lag=share.lag)
        share.vtime = (share.vtime or 0.0) + passed
        share.settled += passed
        share.idle = False

    def note_idle(self, tenant: str) -> None:
        """Marks the tenant's shares of pools where nothing of it runs or waits any more."""
        for pool, queues in self.pools.items():
            share = self.shares[pool][tenant]
            if share.running == 0 and not self.waiting.of(tenant, queues):
                share.idle, share.lag = True, 0.0

    def observe(self, job: SimJob, seconds: float) -> None:
        """Learns from a job that succeeded in one go."""
        value = seconds / work_of(job.spec)
        for key in {(job.spec.queue, job.spec.model), (job.spec.queue, ANY_MODEL)}:
            self.rates[key] = self.rates.get(key, Rate(jobs=0, mean=value, variance=0.0)).observe(value)


def work_of(spec: TraceJob) -> float:
    """How much there is to do, in the measure that rates are for."""
    return spec.seconds if spec.work is None else spec.work
