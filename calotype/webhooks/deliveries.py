"""Deliveries as their tenant sees them: listed, shown, replayed, and in the end forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import NotFound
from calotype.lookup import Page

deliveries = tables.webhook_deliveries
stops = tables.webhook_stops
#: Rows removed by one statement.
BATCH = 1000


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    #: Is tried until it succeeds or the tries are used up.
    PENDING = "pending"
    #: The receiver answered 2xx.
    DELIVERED = "delivered"
    #: Given up after the last try.
    FAILED = "failed"
    #: The receiver answered 410, to this or to one before: nothing more is sent to its URL.
    GONE = "gone"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One row of ``webhook_deliveries``, without its secret."""

    #: Also the ``webhook-id``.
    id: UUID
    job_id: UUID
    url: str
    #: e.g. ``job.succeeded``
    type: str
    #: What is sent, as text.
    body: str = field(repr=False)
    state: DeliveryState
    #: Tries that were begun.
    attempts: int
    #: What came of them, the latest last: ``{"at", "status_code", "error", "seconds", "answer"}``.
    log: Sequence[Mapping[str, Any]]
    created_at: datetime
    #: The next try; None when there is none.
    due_at: datetime | None

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "state": DeliveryState(row["state"])})

    @property
    def message(self) -> dict[str, Any]:
        """What is sent."""
        return dict(json.loads(self.body))


@dataclass(frozen=True, kw_only=True)
class DeliveryFilter:
    """Which deliveries of a tenant; None and empty mean all."""

    job_id: UUID | None = None
    states: tuple[DeliveryState, ...] = ()


def get_delivery(conn: sa.Connection, tenant_id: UUID, delivery_id: UUID) -> Delivery:
    """One delivery.

    Raises:
        NotFound: the tenant has no such delivery.
    """
    statement = sa.select(deliveries).where(_own(tenant_id, delivery_id))
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no webhook delivery {delivery_id}.")
    return Delivery.from_row(row)


def list_deliveries(
    conn: sa.Connection, tenant_id: UUID, wanted: DeliveryFilter, cursor: UUID | None, limit: int
) -> Page[Delivery]:
    """A tenant's deliveries, newest first; ``cursor`` is the id of the last one of the page before."""
    conditions: list[sa.ColumnElement[bool]] = [deliveries.c.tenant_id == tenant_id]
    if wanted.job_id is not None:
        conditions.append(deliveries.c.job_id == wanted.job_id)
    if wanted.states:
        conditions.append(deliveries.c.state.in_([str(state) for state in wanted.states]))
    if cursor is not None:
        conditions.append(deliveries.c.id < cursor)
    statement = sa.select(deliveries).where(*conditions).order_by(deliveries.c.id.desc()).limit(limit + 1)
    found = [Delivery.from_row(row) for row in conn.execute(statement).mappings()]
    return Page(items=found[:limit], has_more=len(found) > limit)


def replay(conn: sa.Connection, tenant_id: UUID, delivery_id: UUID) -> Delivery:
    """Sends a delivery again from the first try on, whatever became of it; its URL takes webhooks again.

    Raises:
        NotFound: the tenant has no such delivery.
    """
    url = get_delivery(conn, tenant_id, delivery_id).url
    # Stops before deliveries: the order of the transaction that records a 410.
    conn.execute(stops.delete().where(stops.c.tenant_id == tenant_id, stops.c.url == url))
    again = {
        "state": DeliveryState.PENDING,
        "attempts_before": deliveries.c.attempts,
        "due_at": sa.func.clock_timestamp(),
    }
    statement = deliveries.update().where(_own(tenant_id, delivery_id)).values(again).returning(deliveries)
    return Delivery.from_row(conn.execute(statement).mappings().one())


def forget(conn: sa.Connection, older_than_seconds: float) -> int:
    """Removes a batch of old deliveries that are not to be tried any more; gives how many."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    old = (
        sa.select(deliveries.c.id)
        .where(deliveries.c.created_at < sa.func.now() - age, deliveries.c.state != DeliveryState.PENDING)
        .order_by(deliveries.c.created_at)
        .limit(BATCH)
    )
    return conn.execute(deliveries.delete().where(deliveries.c.id.in_(old))).rowcount


def _own(tenant_id: UUID, delivery_id: UUID) -> sa.ColumnElement[bool]:
    return sa.and_(deliveries.c.id == delivery_id, deliveries.c.tenant_id == tenant_id)
