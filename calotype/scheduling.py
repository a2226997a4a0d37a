"""Which job next: the rules, without I/O, so that the real claim, the simulator and property tests share them.

In this order. *Fair share*: every tenant has a virtual time for each pool of workers, the device-seconds it was given
over its weight; whose is least comes first (start-time fair queueing: Goyal, Vin and Cheng 1996, with the charge
estimated at the claim and corrected at the end). A tenant that comes back after a pause is raised by what the time
of the pool moved on beyond what it was given, by what was measured and not by estimates, so that it cannot live on what
it did not use, nor pays for a wrong estimate. *Static rank*, within a tenant: the time from which a
job may run, minus a head start for each step of priority. Lower goes first. Because the rank does not change while the
job waits, waiting longer is the same as moving up (aging), and an index can hold the order; computing the age in
ORDER BY cannot use one. *Affinity*: a worker may let a job whose model it has loaded pass, for a bounded time and
number. *Batches*: jobs with an equal key join the chosen one in its call of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

#: Lowest to highest.
PRIORITIES = range(10)
DEFAULT_PRIORITY = 5
#: A job of one priority step more overtakes jobs that have waited up to this much longer.
PRIORITY_STEP = timedelta(seconds=60)

#: Device-seconds taken for a job of a queue that nothing is known of, by its kind.
UNKNOWN_SECONDS = {"generate": 5.0, "train": 600.0, "benchmark": 120.0}

#: Weight of a new observation of a rate once this is less than an equal share: later ones count more, but no single one
#: rules.
RATE_GAIN = 0.05


def head_start(priority: int) -> timedelta:
    """How much earlier than its ``available_at`` a job of this priority ranks."""
    return priority * PRIORITY_STEP


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a tenant stands in a pool; virtual times."""

    #: What it was charged: for jobs that run the estimate, or what they took until now if that is more.
    vtime: float
    #: What it was given by now, as measured: jobs that run count with the time that they have run.
    given: float
    running: int


def standing(*, vtime: float, settled: float, device_seconds: float, weight: float, running: int) -> Standing:
    """``settled`` is ``vtime`` without what is charged for running jobs, which took ``device_seconds`` until now."""
    given = settled + device_seconds / weight
    return Standing(vtime=max(vtime, given), given=given, running=running)


def pool_clock(*, waiting: Iterable[Standing], line: Iterable[Standing], known: Iterable[Standing]) -> float | None:
    """The virtual time that a pool has come to: where tenants that come back begin.

    It is the most that any tenant of the :func:`same_line` was given by now, but no more than the least virtual time
    of the active tenants that have a job to run now (``waiting``), whose turn is next; what that one was given counts,
    too. Who comes back at it has from then on as much device time as those who are there, however wrong the estimates
    are that these are charged with. Tenants that wait out a backoff or are at their limit do not hold it back, nor does
    the one long job of a tenant that had little before.

    When nobody waits and none of the line has anything running it is the most that any tenant of the pool (``known``)
    was given, so that nobody pays for having used what nobody else wanted. None: nothing ever ran there.
    """
    in_line = list(line)
    most = max((one.given for one in in_line), default=None)
    following = min(waiting, key=lambda one: (one.vtime, -one.given), default=None)
    if following is not None:
        return min(following.vtime, following.given if most is None else max(following.given, most))
    if any(one.running for one in in_line):
        return most
    return max((one.given for one in known), default=None)


def same_line(served: Iterable[str], queues: Iterable[str]) -> bool:
    """Whether a tenant last served by a worker of the queues ``served`` competes for one of ``queues``.

    Without a queue in common it does not: who trains on one worker is not measured by who generates on ten others.
    """
    return not set(served).isdisjoint(queues)


def raised(given: float, *, floor: float | None, lag: float) -> float:
    """By how much a tenant's virtual time and what counts as given to it are raised when it was idle.

    It is what the pool's :func:`pool_clock` ``floor`` moved on beyond what the tenant was given itself: what it did not
    use is gone, but what it was owed before stays owed. ``lag`` is :func:`behind` at the claim that left it idle, 0
    once nothing of it ran or waited.
    """
    return max(0.0, floor - given - lag) if floor is not None else 0.0


def behind(given: float, *, floor: float | None) -> float:
    """What a tenant is owed; ``floor`` is the pool's :func:`pool_clock` as if this one did not wait."""
    return max(0.0, floor - given) if floor is not None else 0.0


def effective_vtime(own: Standing | None, *, idle: bool, floor: float | None, lag: float = 0.0) -> float:
    """A tenant's place in the order of claims; ``own`` is None when it never ran there.

    ``idle`` is a tenant that nothing more could be claimed of at its latest claim or since, for it had nothing waiting
    or was at its limit. Once it has something waiting again and room for it, it is :func:`raised`: at its claim, at the
    end of one of its jobs, or, when its turn has to wait for what its jobs that run are charged, at a claim of others.
    """
    vtime = own.vtime if own is not None else 0.0
    return max(vtime, floor - lag) if (idle or own is None) and floor is not None else vtime


def turn(vtime: float, *, idle: bool, running: int, own: float | None = None) -> tuple[float, bool, float, int]:
    """Sorts tenants: the least goes first. ``vtime`` is the effective one, ``own`` the one before it was raised.

    Of equal ones first who was idle, so that who comes back need not wait behind those who stayed; then who has used
    less, so that of several who come back none is raised again and again and never served; then who has less running.
    """
    return vtime, not idle, own or 0.0, running


def has_room(running: int, max_running: int | None) -> bool:
    """Whether a tenant may have one more job running; ``running`` counts those in all pools."""
    return max_running is None or running < max_running


def charge(seconds: float, weight: float) -> float:
    """The virtual time that ``seconds`` of a device cost a tenant of this weight."""
    return seconds / weight


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How long jobs of a queue and model took, per unit of work."""

    jobs: int
    #: Device-seconds per unit of work.
    mean: float
    variance: float

    def observe(self, value: float) -> Rate:
        """With one more job: mean and variance with weights that fall off exponentially.

        (Finch 2009, "Incremental calculation of weighted mean and variance", Equations 124 and 143)
        """
        gain = max(RATE_GAIN, 1.0 / (self.jobs + 1))
        difference = value - self.mean
        mean = self.mean + gain * difference
        variance = (1.0 - gain) * (self.variance + gain * difference * difference)
        return Rate(jobs=self.jobs + 1, mean=mean, variance=variance)


def estimate_seconds(work: float, kind: str, rates: Iterable[Rate | None]) -> float:
    """Device-seconds a job will take: by the first rate that is known, the most specific first."""
    known = next((rate for rate in rates if rate is not None), None)
    return work * known.mean if known is not None else UNKNOWN_SECONDS[kind]


@dataclass(kw_only=True)
class Affinity:
    """One worker's right to prefer jobs whose model it has loaded over the one whose turn it is.

    Bounded both in claims and in time, counted from the first job that was passed.
    """

    #: Seconds.
    longest_wait: float
    longest_streak: int
    _streak: int = 0
    _since: float | None = None

    def may_pass(self, now: float) -> bool:
        """Whether the job whose turn it is may wait for one more claim; ``now`` on any clock, seconds."""
        waited = 0.0 if self._since is None else now - self._since
        return self._streak < self.longest_streak and waited < self.longest_wait

    def note(self, now: float, *, passed: bool) -> None:
        """A claim was made; ``passed``: another job's turn was passed over for it."""
        if passed:
            self._streak += 1
            self._since = now if self._since is None else self._since
        else:
            self._streak, self._since = 0, None


def fill_batch(first: int, limit: int, waiting: Iterable[int]) -> list[int]:
    """Which of ``waiting`` (the units of each, in order) join a batch that ``first`` units begin; gives positions.

    The first that does not fit ends the batch unless a later one fills the gap: a large job is not passed over for
    good, because it comes first when its turn comes.
    """
    room, chosen = limit - first, []
    for position, units in enumerate(waiting):
        if units <= room:
            chosen.append(position)
            room -= units
        if room <= 0:
            break
    return chosen
