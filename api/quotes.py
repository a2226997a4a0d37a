"""Explanations and quotes as the JSON of the API, and the dry run that a quote comes from."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from flask import Response
from pydantic import Field

from api import serialize, submitting
from api.schemas import Answer
from api.services import Services
from calotype import explain, specs
from calotype.database import transaction
from calotype.explain import Answered, Code
from calotype.jobs import Family, Kind, State


class Reason(Answer):
    """One of the things that hold a job up."""

    code: Code = Field(description="Stable; what a program should look at.")
    detail: str = Field(description="In words, with what can be done about it.")


class Ahead(Answer):
    """Jobs that go first, over all queues of the workers that serve the job's queue."""

    own: int = Field(description="Of your tenant.")
    others: int = Field(description="Of other tenants, by fair share; an estimate.")
    more: bool = Field(description="Whether more of yours go first than were counted.")


class EstimatedStart(Answer):
    """An interval; it starts within it unless the workers or the demand change."""

    earliest: datetime
    latest: datetime | None = Field(description="null: no telling.")


class Explanation(Answer):
    """Why a job is where it is."""

    job_id: UUID
    state: State
    at: datetime = Field(description="When this was so.")
    position: int | None = Field(description="1: next. null when the job does not wait for its turn.")
    ahead: Ahead | None
    reasons: list[Reason] = Field(description="What holds it up, the gravest first.")
    estimated_start: EstimatedStart | None = Field(description="null when it does not wait, or nothing can be said.")


class Range(Answer):
    """From and to."""

    least: float
    most: float | None = Field(description="null: no telling.")


class Quote(Answer):
    """What would become of a job; nothing was created."""

    dry_run: bool = True
    kind: Kind
    family: Family
    model: str | None
    spec: dict[str, Any] = Field(description="Completed as it would be; a drawn seed is drawn again.")
    answered: Answered = Field(
        description="`run`: a worker makes it. `cache`: it is answered at once from an equal job. "
        "`equal_job`: it gets the result of an equal one that is on its way."
    )
    wait_seconds: Range | None = Field(description="Until the start; null when it cannot be told, see `reasons`.")
    gpu_seconds: Range = Field(description="Device time.")
    gpu_hour_usd: float | None = Field(description="The operator's price of a device-hour; null: none was set.")
    usd: Range | None
    position: int | None
    ahead: Ahead | None
    reasons: list[Reason]


def explanation(found: explain.Explanation) -> Explanation:
    """The JSON of an explanation."""
    start = found.start
    return Explanation(
        job_id=found.job.id,
        state=found.job.state,
        at=found.now,
        position=found.position,
        ahead=_ahead(found),
        reasons=_reasons(found),
        estimated_start=EstimatedStart(earliest=start.earliest, latest=start.latest) if start is not None else None,
    )


def dry_run(here: Services, tenant_id: UUID, body: specs.JobRequest) -> Response:
    """Submits the job, looks at what that does, and takes it back; nobody else ever sees it and nothing is rung.

    Raises:
        Invalid, NotFound, LimitExceeded: as the submission would.
    """
    price = here.settings.gpu_hour_usd
    with transaction(here.engine) as conn, conn.begin_nested() as undone:
        job = submitting.record(conn, here.settings, tenant_id, body, None)
        quoted = explain.quote(conn, job, gpu_hour_usd=price)
        undone.rollback()
    return serialize.answer(_quote(quoted, price))


def _quote(quoted: explain.Quote, price: float | None) -> Quote:
    job, found = quoted.job, quoted.explanation
    return Quote(
        kind=job.kind,
        family=job.family,
        model=job.model,
        spec=dict(job.spec),
        answered=quoted.answered,
        wait_seconds=_range(quoted.wait),
        gpu_seconds=Range(least=quoted.gpu_seconds.earliest, most=quoted.gpu_seconds.latest),
        gpu_hour_usd=price,
        usd=_range(quoted.usd),
        position=found.position,
        ahead=_ahead(found),
        reasons=_reasons(found) if quoted.answered is not Answered.CACHE else [],
    )


def _range(interval: explain.Interval | None) -> Range | None:
    return Range(least=interval.earliest, most=interval.latest) if interval is not None else None


def _ahead(found: explain.Explanation) -> Ahead | None:
    if found.own_ahead is None or found.others_ahead is None:
        return None
    return Ahead(own=found.own_ahead, others=found.others_ahead, more=found.more_ahead)


def _reasons(found: explain.Explanation) -> list[Reason]:
    return [Reason(code=reason.code, detail=reason.detail) for reason in found.reasons]
