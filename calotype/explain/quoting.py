"""What a job would cost and how long it would wait, before it is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from calotype.explain.explaining import Explanation, explain
from calotype.explain.facts import Rates
from calotype.explain.forecast import Interval, Work
from calotype.jobs import Job, State

SECONDS_PER_HOUR = 3600.0


class Answered(StrEnum):
    """Where the result would come from."""

    #: From a device.
    RUN = "run"
    #: At once, from an equal job that succeeded.
    CACHE = "cache"
    #: From an equal job that is on its way.
    EQUAL_JOB = "equal_job"


@dataclass(frozen=True, kw_only=True)
class Quote:
    """What would happen to a job."""

    #: As it would be; there is no such row.
    job: Job
    explanation: Explanation
    answered: Answered
    #: Seconds from the submission to the start; None when it cannot be told.
    wait: Interval | None
    #: Of the device.
    gpu_seconds: Interval
    #: None where the operator set no price.
    usd: Interval | None


def quote(conn: sa.Connection, job: Job, *, gpu_hour_usd: float | None) -> Quote:
    """What becomes of ``job``, which the caller has submitted in this transaction and is about to roll back.

    So the quote rests on the very checks, the very cache and the very rules that a real submission meets.
    """
    explanation = explain(conn, job.tenant_id, job.id)
    answered = _answered(job)
    cost = _cost(conn, job) if answered is Answered.RUN else Interval(earliest=0.0, latest=0.0)
    return Quote(
        job=job,
        explanation=explanation,
        answered=answered,
        wait=Interval(earliest=0.0, latest=0.0) if answered is Answered.CACHE else _wait(explanation),
        gpu_seconds=cost,
        usd=_priced(cost, gpu_hour_usd) if gpu_hour_usd is not None else None,
    )


def _answered(job: Job) -> Answered:
    if job.state is State.SUCCEEDED:
        return Answered.CACHE
    return Answered.EQUAL_JOB if job.leader_id is not None else Answered.RUN


def _cost(conn: sa.Connection, job: Job) -> Interval:
    key = (job.queue, job.model_key or "")
    work = Work(jobs=1, work=job.work, squares=job.work**2)
    load = Rates(conn, [key]).load({key: work})
    return Interval(earliest=load.least, latest=load.most)


def _wait(explanation: Explanation) -> Interval | None:
    start = explanation.start
    if start is None:
        return None
    latest = (start.latest - explanation.now).total_seconds() if start.latest is not None else None
    return Interval(earliest=(start.earliest - explanation.now).total_seconds(), latest=latest)


def _priced(cost: Interval, gpu_hour_usd: float) -> Interval:
    price = gpu_hour_usd / SECONDS_PER_HOUR
    latest = cost.latest * price if cost.latest is not None else None
    return Interval(earliest=cost.earliest * price, latest=latest)
