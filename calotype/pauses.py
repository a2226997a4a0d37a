"""Queues from which nothing is claimed for a while, at an operator's wish. What runs goes on; what comes waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.errors import NotFound
from calotype.jobs import SERVED_QUEUES

table = tables.queue_pauses


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Since when a queue is paused, and why."""

    reason: str
    paused_at: datetime


def pause(conn: sa.Connection, queue: str, reason: str = "") -> Pause:
    """Lets nobody claim from the queue until :func:`resume`. Once more changes the reason, not the time.

    Raises:
        NotFound: there is no such queue.
    """
    check_queue(queue)
    statement = (
        pg.insert(table)
        .values(queue=queue, reason=reason)
        .on_conflict_do_update(constraint="queue_pauses_pkey", set_={"reason": reason})
        .returning(table.c.reason, table.c.paused_at)
    )
    return Pause(**conn.execute(statement).mappings().one())


def resume(conn: sa.Connection, queue: str) -> None:
    """Opens the queue again; harmless when it is not paused.

    Raises:
        NotFound: there is no such queue.
    """
    check_queue(queue)
    conn.execute(table.delete().where(table.c.queue == queue))


def list_pauses(conn: sa.Connection) -> Mapping[str, Pause]:
    """The queues that are paused."""
    rows = conn.execute(sa.select(table)).mappings()
    return {row["queue"]: Pause(reason=row["reason"], paused_at=row["paused_at"]) for row in rows}


def check_queue(queue: str) -> None:
    """Raises :class:`NotFound` unless this release serves the queue."""
    if queue not in SERVED_QUEUES:
        raise NotFound(f"There is no queue {queue!r}; there are {', '.join(SERVED_QUEUES)}.")
