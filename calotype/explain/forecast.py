"""When a waiting job will start, as an interval, from a few sums. No I/O; the simulator checks how often it is right.

The device time that goes before the job is put together from

- what the workers of its queue still have to do,
- what its own tenant has waiting before it (ranks do not change),
- what other tenants are owed before it. By fair share the job's turn comes when its tenant's virtual time has grown by
  the work ahead of it, to ``V``; until then another tenant of weight ``w`` and virtual time ``v`` gets at most
  ``w * (V - v)``, and at most what it has waiting,
- or, if that is more, what ranks before the job and can share calls with it, whoever it belongs to,

and poured over the workers that serve the queue, each from the moment at which it is free.

The earliest time takes jobs to be short, counts only what waits now, and that jobs which still run when this one starts
need not be over. The latest takes them to be long, and lets other tenants go on submitting as they did lately.

What is assumed: the workers there are stay; no tenant that was not seen lately turns up; the tenant itself submits
nothing that ranks before the job; a device's time per unit of work stays what it was within :data:`DRIFT`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calotype.scheduling import UNKNOWN_SECONDS, Rate

#: Standard deviations to each side.
SPREAD = 1.65
#: By how much all jobs together may be slower, or faster, than they were: smaller or larger batches, other devices.
DRIFT = 0.35
#: The same where only the rate over all models of the queue is known, and where none is.
DRIFT_OF_OTHERS = 1.5
DRIFT_OF_UNKNOWN = 4.0
#: A rate from fewer jobs than this may be that of loading the model.
FEW_JOBS = 10
#: Seconds until an idle worker that heard no doorbell looks by itself.
NOTICE_SECONDS = 3.0
#: Rounds in which what arrives meanwhile is added to the wait.
ROUNDS = 20


@dataclass(frozen=True, kw_only=True)
class Load:
    """Jobs, in device-seconds."""

    jobs: int = 0
    seconds: float = 0.0
    #: If all of them together are faster, or slower, than they were.
    low: float = 0.0
    high: float = 0.0
    #: Of each job by itself, summed up.
    variance: float = 0.0
    #: There is more than was counted.
    more: bool = False

    def __add__(self, other: Load) -> Load:
        return Load(
            jobs=self.jobs + other.jobs,
            seconds=self.seconds + other.seconds,
            low=self.low + other.low,
            high=self.high + other.high,
            variance=self.variance + other.variance,
            more=self.more or other.more,
        )

    @property
    def least(self) -> float:
        return max(0.0, self.low - SPREAD * math.sqrt(self.variance))

    @property
    def most(self) -> float:
        return math.inf if self.more else self.high + SPREAD * math.sqrt(self.variance)

    @property
    def usual(self) -> float:
        """Device-seconds of one job."""
        return self.seconds / self.jobs if self.jobs else 0.0


NOTHING = Load()


@dataclass(frozen=True, kw_only=True)
class Work:
    """Jobs of one queue and model, in the measure that rates are for."""

    jobs: int
    #: Sums over the jobs.
    work: float
    squares: float
    #: There is more than was counted.
    more: bool = False


def load_of(work: Work, kind: str, own: Rate | None, others: Rate | None) -> Load:
    """What the jobs will take by the rate of their very model, else by that over all models of their queue."""
    rate = own or others
    if rate is None:
        seconds = work.jobs * UNKNOWN_SECONDS[kind]
        low, high, variance = seconds / (1 + DRIFT_OF_UNKNOWN), seconds * (1 + DRIFT_OF_UNKNOWN), 0.0
    else:
        seconds, variance = work.work * rate.mean, work.squares * rate.variance
        means = sorted(one.mean for one in (own, others) if one is not None)
        if own is not None and own.jobs >= FEW_JOBS:
            low, high = seconds / (1 + DRIFT), seconds * (1 + DRIFT)
        else:
            low, high = work.work * means[0] / (1 + DRIFT_OF_OTHERS), work.work * means[-1] * (1 + DRIFT_OF_OTHERS)
    return Load(jobs=work.jobs, seconds=seconds, low=low, high=high, variance=variance, more=work.more)


def remaining(whole: Load, passed: float) -> Load:
    """What is left of jobs after so many seconds; of what takes longer than expected, perhaps as much again."""
    left = max(0.0, whole.seconds - passed)
    high = max(whole.high - passed, left, 0.0 if left else passed)
    return replace(whole, seconds=left, low=max(0.0, whole.low - passed), high=high)


@dataclass(frozen=True, kw_only=True)
class Rival:
    """Another tenant whose jobs the same workers run."""

    #: Effective virtual time in the pool.
    vtime: float
    weight: float
    waiting: Load = NOTHING
    #: Device-seconds per second that it asked for lately.
    arriving: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What decides when a job starts."""

    #: What each worker that serves the job's queue still has to do.
    workers: Sequence[Load]
    #: Of the job's tenant.
    vtime: float
    weight: float
    #: Its jobs that go first.
    ahead: Load = NOTHING
    rivals: Sequence[Rival] = ()
    #: Seconds before which the job may not start.
    held_back: float = 0.0
    #: How many jobs of the tenant may run at once, None: no limit; and what those that run still have to do.
    limit: int | None = None
    running: Sequence[Load] = ()
    #: What goes before it if it is taken before its turn, into a batch or for its model is loaded; None: it cannot be.
    out_of_turn: Load | None = None
    #: Better-ranked jobs of all tenants that can share calls with the tenant's own, whoever's turn it is.
    alike: Load = NOTHING
    #: Seconds for which others may be taken before it, for their models are loaded.
    passed_over: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From and to, in seconds."""

    earliest: float
    #: None: no telling.
    latest: float | None


def start(outlook: Outlook) -> Interval | None:
    """When the job starts, in seconds from now; None when no worker serves its queue or its tenant may run nothing."""
    if not outlook.workers or outlook.limit == 0:
        return None
    latest = max(_latest(outlook), outlook.held_back) + outlook.passed_over + NOTICE_SECONDS
    return Interval(
        earliest=max(_earliest(outlook), outlook.held_back),
        latest=latest if math.isfinite(latest) else None,
    )


def jobs_before(outlook: Outlook) -> int:
    """About how many jobs of other tenants go first."""
    turn = outlook.vtime + outlook.ahead.seconds / outlook.weight
    return sum(_jobs_of(rival, turn) for rival in outlook.rivals)


def _jobs_of(rival: Rival, turn: float) -> int:
    owed = rival.weight * max(0.0, turn - rival.vtime)
    if owed >= rival.waiting.seconds or not rival.waiting.jobs:
        return rival.waiting.jobs
    return math.ceil(owed / rival.waiting.usual)


def _earliest(outlook: Outlook) -> float:
    free = [load.least for load in outlook.workers]
    own = outlook.ahead.least
    turn = outlook.vtime + own / outlook.weight
    before = own + sum(
        min(rival.waiting.least, rival.weight * max(0.0, turn - rival.vtime)) for rival in outlook.rivals
    )
    # The last jobs before it may still run on the other workers when it starts.
    waiting = sum((rival.waiting for rival in outlook.rivals), outlook.ahead)
    before -= (len(free) - 1) * waiting.usual
    by_limit = 0.0
    if outlook.limit is not None:
        slots = _slots(outlook.limit, [load.least for load in outlook.running])
        by_limit = pour(slots, own - (len(slots) - 1) * outlook.ahead.usual)
    by_turn = max(pour(free, before), by_limit)
    return by_turn if outlook.out_of_turn is None else min(by_turn, pour(free, outlook.out_of_turn.least))


def _latest(outlook: Outlook) -> float:
    free = [load.most for load in outlook.workers]
    own = outlook.ahead.most
    turn = outlook.vtime + own / outlook.weight
    wait = 0.0
    for _ in range(ROUNDS):
        before = own + sum(_most_before(rival, turn, wait) for rival in outlook.rivals)
        # Those in one call take their time together: what may join is done before, too.
        longer = pour(free, max(before, outlook.alike.most))
        if longer <= wait:
            break
        wait = longer
    if outlook.limit is not None:
        wait = max(wait, pour(_slots(outlook.limit, [load.most for load in outlook.running]), own))
    return wait


def _most_before(rival: Rival, turn: float, wait: float) -> float:
    """Of what it has and what arrives, what it is owed; and a job more, for jobs are not cut short."""
    if rival.vtime > turn:
        return 0.0
    asked = rival.waiting.most + rival.arriving * (1.0 + DRIFT) * wait
    owed = rival.weight * max(0.0, turn - rival.vtime)
    return min(asked, owed + rival.waiting.usual)


def _slots(limit: int, running: Sequence[float]) -> list[float]:
    """When each job that the tenant may have running could begin."""
    return sorted([*running, *[0.0] * (limit - len(running))])[-limit:]


def pour(free: Sequence[float], seconds: float) -> float:
    """When work of so many device-seconds is done that fills up workers, each from the moment at which it is free."""
    order = sorted(free)
    done = order[0]
    for count, until in enumerate([*order[1:], math.inf], 1):
        if seconds <= (until - done) * count:
            return done + max(0.0, seconds) / count
        seconds -= (until - done) * count
        done = until
    return done
