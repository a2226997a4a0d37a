"""What was used, per day."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated
from uuid import UUID

import sqlalchemy as sa
from flask import Blueprint
from flask.typing import ResponseReturnValue
from pydantic import ConfigDict, Field

from api import auth, paging, schemas
from api.auth import principal
from api.calls import Answer, call
from api.paging import PageQuery
from api.reading import Day
from api.services import services
from calotype import tenants, usage
from calotype.database import transaction
from calotype.errors import FieldError, Invalid
from calotype.tenants import Scope

blueprint = Blueprint("usage", __name__)

#: Days that are listed when nothing is said, and at most.
DEFAULT_DAYS = 30
MOST_DAYS = 366
#: Stands for every tenant.
ALL = "*"


class UsageQuery(PageQuery):
    """Which days; the newest first."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_alias=True, validate_by_name=False)

    first: Annotated[date, Day] | None = Field(
        default=None, alias="from", description=f"The first day, in UTC; else {DEFAULT_DAYS} days up to the last."
    )
    last: Annotated[date, Day] | None = Field(default=None, alias="to", description="The last day, in UTC; else today.")
    tenant: str | None = Field(
        default=None, description="Another tenant, or `*` for all of them: needs the scope `admin`."
    )

    def days(self) -> tuple[date, date]:
        """The first and the last.

        Raises:
            Invalid: they are in the wrong order or too far apart.
        """
        last = self.last or datetime.now(UTC).date()
        first = self.first or date.fromordinal(max(1, last.toordinal() - DEFAULT_DAYS + 1))
        if not 0 <= (last - first).days < MOST_DAYS:
            msg = f"must be at most {MOST_DAYS - 1} days before `to`, and not after it"
            raise Invalid(errors=[FieldError(loc=("query", "from"), msg=msg)])
        return first, last


@blueprint.get("/usage")
@call(
    "Fleet",
    "What was used",
    scope=Scope.JOBS_READ,
    query=UsageQuery,
    description="Per UTC day and queue. Device time counts on the day on which an attempt was over.",
    answers=[
        Answer(status=200, description="Days on which something ended, the newest first.", model=schemas.UsagePage)
    ],
    codes=["not_found"],
)
def list_usage(query: UsageQuery) -> ResponseReturnValue:
    first, last = query.days()
    with transaction(services().engine) as conn:
        found = usage.list_usage(conn, first, last, _whose(conn, query.tenant))
    return paging.answer(found, query, key=_position, render=_usage, descending=True)


def _whose(conn: sa.Connection, name: str | None) -> UUID | None:
    """The tenant that is asked for; None for all."""
    if name is None or name == principal().tenant_name:
        return principal().tenant_id
    auth.require(principal(), Scope.ADMIN)
    return None if name == ALL else tenants.get_tenant(conn, name).id


def _position(entry: usage.Usage) -> str:
    return f"{entry.day.isoformat()} {entry.tenant} {entry.queue}"


def _usage(entry: usage.Usage) -> schemas.Usage:
    return schemas.Usage(
        tenant=entry.tenant,
        day=entry.day,
        queue=entry.queue,
        jobs=entry.jobs,
        cached=entry.cached,
        images=entry.images,
        gpu_seconds=round(entry.gpu_seconds, 3),
    )
