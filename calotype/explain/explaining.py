"""Puts an explanation together: what is known, what it means for the start, and the words for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from uuid import UUID

import sqlalchemy as sa

from calotype import lookup
from calotype.explain import facts, forecast, reasons
from calotype.explain.facts import Account, Rates, Running, ServingWorker, Works
from calotype.explain.forecast import NOTHING, Interval, Load, Outlook, Rival
from calotype.explain.reasons import Reason
from calotype.jobs import Job, State
from calotype.scheduling import Standing, effective_vtime, has_room, pool_clock, same_line

#: An idle worker that has not looked for work for so long, in seconds, is deaf: it should every few.
DEAF_SECONDS = 60.0
#: For how long a worker may prefer jobs whose model it has loaded: the default of the workers' setting.
AFFINITY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Start:
    """When a job is expected to start."""

    earliest: datetime
    #: None: no telling.
    latest: datetime | None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job is where it is."""

    job: Job
    now: datetime
    #: What holds it up, the gravest first.
    reasons: tuple[Reason, ...]
    #: Jobs that go first: its tenant's own, and about how many of others; None when it does not wait for its turn.
    own_ahead: int | None = None
    others_ahead: int | None = None
    #: More go first than were counted.
    more_ahead: bool = False
    #: None when it does not wait, or nothing can be said.
    start: Start | None = None

    @property
    def position(self) -> int | None:
        """1: next. Other tenants' jobs are estimated."""
        if self.own_ahead is None or self.others_ahead is None:
            return None
        return self.own_ahead + self.others_ahead + 1


def explain(conn: sa.Connection, tenant_id: UUID, job_id: UUID) -> Explanation:
    """Why a job of the tenant is where it is, and when it is expected to start.

    Of other tenants it tells numbers of jobs only. The cost does not grow with the number of waiting jobs. How the
    start is estimated, and what is assumed: :mod:`calotype.explain.forecast`.

    Raises:
        NotFound: the tenant has no such job.
    """
    job = lookup.get(conn, tenant_id, job_id)
    now = facts.clock(conn)
    if job.state.terminal:
        return Explanation(job=job, now=now, reasons=(reasons.ended(job),))
    if job.state is not State.QUEUED:
        return Explanation(job=job, now=now, reasons=tuple(_of_running(conn, job)))
    if job.leader_id is not None:
        return Explanation(job=job, now=now, reasons=(reasons.waits_for(job.leader_id),))
    return _Waiting(conn, job, now).explanation()


def _of_running(conn: sa.Connection, job: Job) -> list[Reason]:
    if job.state is State.CANCELING:
        return [reasons.canceling()]
    worker = next((one for one in facts.serving(conn, job.queue) if one.id == job.worker_id), None)
    loads = worker is not None and job.progress is None and job.model_key not in (None, *worker.loaded_models)
    return [reasons.loads_model(), reasons.runs(job)] if loads else [reasons.runs(job)]


class _Waiting:
    """A queued job and what is known of its surroundings; each fact is asked for once."""

    def __init__(self, conn: sa.Connection, job: Job, now: datetime) -> None:
        self._conn = conn
        self._job = job
        self._now = now
        self._rank = facts.rank(conn, job)
        self._serving = facts.serving(conn, job.queue)
        self._taking = [one for one in self._serving if not one.draining and one.state != "draining"]
        self._pause = facts.pause_reason(conn, job.queue)
        self._running = facts.running(conn, job.tenant_id, [one.id for one in self._serving])
        self._account = facts.account(conn, self._pool, job.tenant_id)
        self._ahead = facts.ahead(conn, job, self._rank, self._queues)
        self._others = [one for one in facts.accounts(conn, self._pool, self._queues) if one.tenant_id != job.tenant_id]
        self._waiting = facts.waiting(conn, [one.tenant_id for one in self._others if one.listed], self._queues)
        self._alike = facts.alike(conn, job, self._rank) if job.batch_key is not None and job.attempt == 0 else {}
        self._same_model = facts.same_model(conn, job, self._rank, self._queues) if self._may_be_preferred else {}
        self._demand = facts.demand(conn)
        self._rates = Rates(conn, self._keys())

    def explanation(self) -> Explanation:
        outlook = self.outlook
        interval = forecast.start(outlook) if self._pause is None else None
        start = self._start(interval) if interval is not None else None
        own, others = outlook.ahead.jobs, forecast.jobs_before(outlook)
        return Explanation(
            job=self._job,
            now=self._now,
            reasons=(*self._obstacles(), *self._turn(own, others), *self._deadline(start)),
            own_ahead=own,
            others_ahead=others,
            more_ahead=outlook.ahead.more,
            start=start,
        )

    # What it means

    @cached_property
    def outlook(self) -> Outlook:
        """What decides when the job starts."""
        limit = self._account.max_running
        own = [self._left([one]) for one in self._running if one.own] if limit is not None else []
        clock = self._clock()
        return Outlook(
            workers=[self._left([one for one in self._running if one.worker_id == w.id]) for w in self._taking],
            vtime=self._vtime(self._account, clock),
            weight=self._account.weight,
            ahead=self._rates.load(self._ahead),
            rivals=[self._rival(one, clock) for one in self._others],
            held_back=max(0.0, (self._job.available_at - self._now).total_seconds()),
            limit=limit,
            running=own,
            out_of_turn=self._out_of_turn(),
            alike=self._rates.load(self._alike),
            passed_over=AFFINITY_SECONDS if self._may_be_passed else 0.0,
        )

    def _clock(self) -> float | None:
        known = [one for one in (*self._others, self._account) if one.vtime is not None]
        return pool_clock(
            waiting=[_standing(one) for one in known if self._is_active(one)],
            line=[_standing(one) for one in known if same_line(one.queues, self._queues)],
            known=[_standing(one) for one in known],
        )

    def _is_active(self, account: Account) -> bool:
        """Whether it has a job that could be claimed, and had one all the time."""
        waits = account is self._account or account.tenant_id in self._waiting
        return waits and not account.idle and _has_room(account)

    def _vtime(self, account: Account, clock: float | None) -> float:
        own = _standing(account) if account.vtime is not None else None
        return effective_vtime(own, idle=account.idle, floor=clock, lag=account.lag)

    def _rival(self, account: Account, clock: float | None) -> Rival:
        waiting = self._rates.load(self._waiting.get(account.tenant_id, {})) if _has_room(account) else NOTHING
        arriving = self._demand.get(account.tenant_id, 0.0)
        return Rival(vtime=self._vtime(account, clock), weight=account.weight, waiting=waiting, arriving=arriving)

    def _left(self, jobs: Sequence[Running]) -> Load:
        """What a worker still has to do of a call that these jobs share."""
        if not jobs:
            return NOTHING
        eta = max((job.eta_seconds for job in jobs if job.eta_seconds is not None), default=None)
        if eta is not None:
            low, high = eta / (1 + forecast.DRIFT), eta * (1 + forecast.DRIFT)
            return Load(jobs=len(jobs), seconds=eta, low=low, high=high)
        whole = sum((self._rates.load({(job.queue, job.model_key or ""): job.work}) for job in jobs), NOTHING)
        return forecast.remaining(whole, max(job.passed for job in jobs))

    def _out_of_turn(self) -> Load | None:
        """What goes before it if it joins a batch or its model is loaded; the less of the two."""
        loads = []
        if self._alike:
            before = self._rates.load(self._alike)
            call = before.usual * self._job.batch_limit / max(1, self._job.units)
            loads.append(replace(before, low=max(0.0, before.low - call)))
        if self._may_be_preferred:
            loads.append(self._rates.load(self._same_model))
        return min(loads, key=lambda load: load.least, default=None)

    def _start(self, interval: Interval) -> Start:
        latest = self._now + timedelta(seconds=interval.latest) if interval.latest is not None else None
        return Start(earliest=self._now + timedelta(seconds=interval.earliest), latest=latest)

    # What is known

    @property
    def _pool(self) -> str:
        """The pool of most of the workers."""
        pools = Counter(worker.pool for worker in self._taking or self._serving)
        return pools.most_common(1)[0][0] if pools else "default"

    @property
    def _queues(self) -> list[str]:
        """All that these workers serve."""
        return sorted({queue for worker in self._taking for queue in worker.queues} | {self._job.queue})

    def _keys(self) -> set[tuple[str, str]]:
        found = {(job.queue, job.model_key or "") for job in self._running}
        for works in (self._ahead, self._alike, self._same_model, *self._waiting.values()):
            found.update(works)
        return found | {(self._job.queue, self._job.model_key or "")}

    @property
    def _loaded(self) -> set[str]:
        return {model for worker in self._taking for model in worker.loaded_models}

    @property
    def _models_waiting(self) -> set[str]:
        everything: list[Works] = [self._ahead, *self._waiting.values()]
        return {model for works in everything for _, model in works if model}

    @property
    def _may_be_preferred(self) -> bool:
        """Whether a worker has its model loaded and others wait that need another one."""
        return self._job.model_key in self._loaded and bool(self._models_waiting - {self._job.model_key})

    @property
    def _may_be_passed(self) -> bool:
        """Whether a worker would have to load its model and others wait whose models are loaded."""
        cold = any(self._job.model_key not in worker.loaded_models for worker in self._taking)
        return cold and self._job.model_key is not None and bool(self._models_waiting & self._loaded)

    # In words

    def _obstacles(self) -> list[Reason]:
        job, found = self._job, []
        if self._pause is not None:
            found.append(reasons.paused(job.queue, self._pause))
        if not self._serving:
            found.append(reasons.no_worker(job.queue))
        if leaving := [worker for worker in self._serving if worker not in self._taking]:
            found.append(reasons.draining(leaving))
        found += [reasons.deaf(worker) for worker in self._taking if _is_deaf(worker)]
        if names := facts.looping(self._conn, job.queue):
            found.append(reasons.looping(names))
        if job.available_at > self._now:
            found.append(reasons.backs_off(job, self._now))
        if not _has_room(self._account):
            found.append(reasons.limited(self._account.max_running or 0, self._account.running))
        return found

    def _turn(self, own: int, others: int) -> list[Reason]:
        """What it waits for that is in order."""
        if own or others:
            return [reasons.behind(own, others, more=self.outlook.ahead.more), *self._loading()]
        if not self._taking or self._pause is not None or self._job.available_at > self._now:
            return []
        busy = {job.worker_id for job in self._running}
        if all(worker.id in busy for worker in self._taking):
            return [reasons.all_busy(len(self._taking), self._job.queue), *self._loading()]
        idle = [worker for worker in self._taking if worker.id not in busy and not _is_deaf(worker)]
        return [reasons.starts_now()] if idle and _has_room(self._account) else []

    def _loading(self) -> list[Reason]:
        loading = [one for one in self._taking if reasons.is_loading(one, self._running)]
        return [reasons.loading_elsewhere(worker) for worker in loading]

    def _deadline(self, start: Start | None) -> list[Reason]:
        expires = self._job.expires_at
        if expires is None or self._job.started_at is not None:
            return []
        late = start is None or start.latest is None or start.latest > expires
        return [reasons.may_expire(expires)] if late else []


def _standing(account: Account) -> Standing:
    return Standing(vtime=account.vtime or 0.0, given=account.given, running=account.running_here)


def _has_room(account: Account) -> bool:
    return has_room(account.running, account.max_running)


def _is_deaf(worker: ServingWorker) -> bool:
    return worker.state == "idle" and worker.silent_seconds > DEAF_SECONDS
