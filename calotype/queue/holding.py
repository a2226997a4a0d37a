"""What a worker writes while it holds a job. Every write is fenced by the epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.errors import LeaseLost
from calotype.jobs import Progress, State
from calotype.queue.rows import HELD_STATES, NOW, interval, jobs

_followers = jobs.alias("followers")
# What the worker is to know: it goes on for those who wait, whoever canceled.
_WANTED = sa.case(
    (sa.exists().where(_followers.c.leader_id == jobs.c.id).correlate(jobs), State.RUNNING), else_=jobs.c.state
).label("state")


def heartbeat(conn: sa.Connection, job_id: UUID, epoch: int, lease_seconds: float) -> State:
    """Renews the lease; says whether to stop: not while another job waits for the result of a canceled one.

    Raises:
        LeaseLost: the epoch is stale.
    """
    return _write(conn, job_id, epoch, {"lease_expires_at": NOW + interval(lease_seconds)})


def look(conn: sa.Connection, job_id: UUID, epoch: int) -> State:
    """Like :func:`heartbeat`, without a write: running or canceling.

    Raises:
        LeaseLost: the epoch is stale.
    """
    state = conn.execute(
        sa.select(_WANTED).where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(HELD_STATES))
    ).scalar_one_or_none()
    if state is None:
        raise LeaseLost(job_id, epoch)
    return State(state)


def progress(conn: sa.Connection, job_id: UUID, epoch: int, value: Progress) -> State:
    """Writes how far the job is.

    Raises:
        LeaseLost: the epoch is stale.
    """
    values = {"progress": value.as_dict(), "revision": jobs.c.revision + 1}
    return _write(conn, job_id, epoch, values, [("progress", value.as_dict())])


def checkpoint(conn: sa.Connection, job_id: UUID, epoch: int, value: Mapping[str, Any]) -> State:
    """Writes from where another worker can go on; the objects it names are uploaded before.

    Raises:
        LeaseLost: the epoch is stale.
    """
    values = {"checkpoint": dict(value), "revision": jobs.c.revision + 1}
    return _write(conn, job_id, epoch, values, [("checkpoint", {"step": value.get("step")})])


def tell(conn: sa.Connection, job_id: UUID, epoch: int, said: Sequence[tuple[str, Mapping[str, Any]]]) -> State:
    """Appends events of a running job, in order: ``("log", {"message": …})`` or ``("metrics", {…})``.

    Raises:
        LeaseLost: the epoch is stale.
    """
    return _write(conn, job_id, epoch, {}, said)


def _write(
    conn: sa.Connection,
    job_id: UUID,
    epoch: int,
    values: Mapping[str, Any],
    said: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> State:
    # The state only: a spec may hold an image, and this runs every second.
    statement = (
        jobs.update()
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(HELD_STATES))
        .values(event_seq=jobs.c.event_seq + len(said), **values)
        .returning(_WANTED, jobs.c.event_seq)
    )
    row = conn.execute(statement).one_or_none()
    if row is None:
        raise LeaseLost(job_id, epoch)
    if said:
        first = row.event_seq - len(said) + 1
        rows = [
            {"job_id": job_id, "seq": first + number, "type": word, "data": _storable(data)}
            for number, (word, data) in enumerate(said)
        ]
        conn.execute(tables.events.insert().values(created_at=NOW), rows)
    return State(row.state)


def _storable(data: Mapping[str, Any]) -> dict[str, Any]:
    # Postgres' JSON cannot hold a NUL.
    return {key: value.replace("\x00", "�") if isinstance(value, str) else value for key, value in data.items()}
