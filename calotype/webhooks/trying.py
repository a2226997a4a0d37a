"""The tries of a delivery in the database: taken under a lease, and what came of them.

A try is taken like a job: its row says until when it counts as being made, and no lock is held meanwhile. A process
that dies between sending and its commit leaves a row that falls due again, so that a message is sent at least once,
always under the same id.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.webhooks.deliveries import DeliveryState
from calotype.webhooks.schedule import DELAYS, JITTER

deliveries = tables.webhook_deliveries
stops = tables.webhook_stops
NOW = sa.func.clock_timestamp()
#: Deliveries that share the fate of one.
MOST_AT_ONCE = 1000
#: Entries that a delivery's log keeps.
KEPT_TRIES = 30


@dataclass(frozen=True, kw_only=True)
class Due:
    """A delivery that is being tried."""

    id: UUID
    tenant_id: UUID
    job_id: UUID
    url: str = field(repr=False)
    #: Host and port.
    host: str
    #: None: the tenant's own.
    secret: str | None = field(repr=False)
    type: str
    body: str = field(repr=False)
    #: The number of this try, from 1; fences what it reports.
    attempts: int
    #: Tries before the latest replay.
    attempts_before: int
    log: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def tries(self) -> int:
        """Tries of the present schedule, this one included."""
        return self.attempts - self.attempts_before

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


def take(
    conn: sa.Connection, lease_seconds: float, full_hosts: Collection[str] = (), full_tenants: Collection[UUID] = ()
) -> Due | None:
    """Begins a try of the delivery that is due longest, passing over hosts and tenants that have enough."""
    waiting = sa.and_(
        deliveries.c.state == DeliveryState.PENDING,
        deliveries.c.due_at <= NOW,
        deliveries.c.host.not_in(list(full_hosts)),
        deliveries.c.tenant_id.not_in(list(full_tenants)),
    )
    first = (
        sa.select(deliveries.c.id)
        .where(waiting)
        .order_by(deliveries.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    begun = {"attempts": deliveries.c.attempts + 1, "due_at": NOW + _seconds(lease_seconds)}
    statement = deliveries.update().where(deliveries.c.id == first).values(begun).returning(deliveries)
    row = conn.execute(statement).mappings().one_or_none()
    return Due.from_row(row) if row is not None else None


def delivered(conn: sa.Connection, due: Due, entry: Mapping[str, Any]) -> bool:
    """The receiver has it; true even when a later try is on its way. False: it had an end already."""
    return _end(conn, due, entry, DeliveryState.DELIVERED, fenced=False)


def put_off(conn: sa.Connection, due: Due, entry: Mapping[str, Any], seconds: float) -> bool:
    """Another try after so many seconds. False: a later try has begun, which decides."""
    return _write(conn, due, entry, {"due_at": NOW + _seconds(seconds)})


def give_up(conn: sa.Connection, due: Due, entry: Mapping[str, Any]) -> bool:
    """That was the last try. False: a later one has begun, which decides."""
    return _end(conn, due, entry, DeliveryState.FAILED)


def stop(conn: sa.Connection, due: Due, entry: Mapping[str, Any]) -> bool:
    """The receiver is gone: neither this nor anything else of the tenant is sent to the URL any more."""
    stopped = pg.insert(stops).values(tenant_id=due.tenant_id, url=due.url).on_conflict_do_nothing()
    conn.execute(stopped)
    ended = _end(conn, due, entry, DeliveryState.GONE)
    waiting = sa.and_(
        deliveries.c.tenant_id == due.tenant_id,
        deliveries.c.url == due.url,
        deliveries.c.state == DeliveryState.PENDING,
    )
    conn.execute(deliveries.update().where(waiting).values(state=DeliveryState.GONE, due_at=None))
    return ended


# Those that are due now; one beyond its last delay finds none, and is given up.
_SHARE_FATE = sa.text("""
UPDATE webhook_deliveries SET
    attempts = attempts + 1,
    state = CASE WHEN attempts + 1 - attempts_before > :tries THEN 'failed' ELSE 'pending' END,
    due_at = clock_timestamp() + make_interval(
        secs => (CAST(:delays AS float[]))[attempts + 1 - attempts_before] * (1 + :jitter * random())),
    log = log || CAST(:entry AS jsonb)
WHERE id IN (
    SELECT id FROM webhook_deliveries
    WHERE state = 'pending' AND due_at <= clock_timestamp() AND tenant_id = :tenant_id AND url = :url
    ORDER BY due_at LIMIT :most FOR UPDATE SKIP LOCKED)
""")


def share_fate(conn: sa.Connection, due: Due, entry: Mapping[str, Any]) -> int:
    """Counts a failed try for what else is due at the URL of one that got no answer; gives how many.

    One by one they would each wait for as long, and so many would wait in the end that none was ever given up.
    """
    told = {**entry, "error": f"not sent: another delivery to this URL just failed ({entry['error']})", "seconds": 0.0}
    values = {
        "tenant_id": due.tenant_id,
        "url": due.url,
        "entry": json.dumps(told),
        "delays": list(DELAYS),
        "tries": len(DELAYS),
        "jitter": JITTER,
        "most": MOST_AT_ONCE,
    }
    return conn.execute(_SHARE_FATE, values).rowcount


def _end(conn: sa.Connection, due: Due, entry: Mapping[str, Any], state: DeliveryState, *, fenced: bool = True) -> bool:
    return _write(conn, due, entry, {"state": state, "due_at": None}, fenced=fenced)


def _write(
    conn: sa.Connection, due: Due, entry: Mapping[str, Any], values: Mapping[str, Any], *, fenced: bool = True
) -> bool:
    conditions = [deliveries.c.id == due.id, deliveries.c.state == DeliveryState.PENDING]
    if fenced:
        conditions.append(deliveries.c.attempts == due.attempts)
    log = [*due.log, entry][-KEPT_TRIES:]
    return bool(conn.execute(deliveries.update().where(*conditions).values(log=log, **values)).rowcount)


def _seconds(seconds: float) -> sa.Function[Any]:
    return sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds)
