"""Workers register themselves, say that they live, and are retired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.errors import NotFound

workers = tables.workers


class WorkerState(StrEnum):
    """What a worker process is doing."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    #: Takes no more jobs and is about to stop.
    DRAINING = "draining"


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """What a worker says of itself at its start."""

    id: UUID
    name: str
    hostname: str
    pid: int
    queues: Sequence[str]
    #: ``{"kind": "cpu" | "cuda", "name": …, "memory_bytes": …, "torch": …}``
    device: Mapping[str, Any]
    #: Of Calotype.
    version: str
    #: Workers whose device time is shared out together.
    pool: str = "default"


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One row of ``workers``."""

    id: UUID
    name: str
    hostname: str
    pid: int
    queues: tuple[str, ...]
    device: Mapping[str, Any]
    version: str
    state: WorkerState
    loaded_models: tuple[str, ...]
    started_at: datetime
    seen_at: datetime
    retired_at: datetime | None
    pool: str = "default"
    #: When it last asked for work.
    looked_at: datetime | None = None
    #: An operator wants it to take no more jobs.
    draining: bool = False

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        values = {
            **row,
            "state": WorkerState(row["state"]),
            "queues": tuple(row["queues"]),
            "loaded_models": tuple(row["loaded_models"]),
        }
        return cls(**values)


def register(conn: sa.Connection, info: WorkerInfo) -> Worker:
    """Adds a worker, or brings one back whose row was retired while Postgres could not be reached."""
    values: dict[str, Any] = {
        "id": info.id,
        "name": info.name,
        "hostname": info.hostname,
        "pid": info.pid,
        "queues": list(info.queues),
        "device": dict(info.device),
        "version": info.version,
        "pool": info.pool,
        "state": WorkerState.STARTING,
    }
    statement = (
        pg.insert(workers)
        .values(**values)
        .on_conflict_do_update(constraint="workers_pkey", set_={"retired_at": None, "seen_at": sa.func.now(), **values})
        .returning(workers)
    )
    return Worker.from_row(conn.execute(statement).mappings().one())


def seen(
    conn: sa.Connection,
    worker_id: UUID,
    state: WorkerState,
    loaded_models: Sequence[str] = (),
    *,
    looked_seconds_ago: float | None = None,
) -> Worker | None:
    """Says that a worker lives, what it is doing and when it last asked for work (None: never yet).

    Gives its row, which says whether an operator drains it; None when it has none any more and must register again.
    """
    looked_at = None if looked_seconds_ago is None else sa.func.now() - timedelta(seconds=looked_seconds_ago)
    statement = (
        workers.update()
        .where(workers.c.id == worker_id, workers.c.retired_at.is_(None))
        .values(
            seen_at=sa.func.now(),
            state=state,
            loaded_models=list(loaded_models),
            looked_at=sa.func.coalesce(looked_at, workers.c.looked_at),
        )
        .returning(workers)
    )
    row = conn.execute(statement).mappings().one_or_none()
    return Worker.from_row(row) if row is not None else None


def drain(conn: sa.Connection, worker_id: UUID) -> Worker:
    """Lets a worker finish what it has and take no more jobs until :func:`undrain`; twice is harmless.

    Raises:
        NotFound: there is no such worker, or it has stopped.
    """
    return _set_draining(conn, worker_id, draining=True)


def undrain(conn: sa.Connection, worker_id: UUID) -> Worker:
    """Lets a worker take jobs again; twice is harmless.

    Raises:
        NotFound: there is no such worker, or it has stopped.
    """
    return _set_draining(conn, worker_id, draining=False)


def is_draining(conn: sa.Connection, worker_id: UUID) -> bool:
    """Whether an operator wants it to take no more jobs; what claims go by."""
    return bool(conn.execute(sa.select(workers.c.draining).where(workers.c.id == worker_id)).scalar())


def _set_draining(conn: sa.Connection, worker_id: UUID, *, draining: bool) -> Worker:
    statement = (
        workers.update()
        .where(workers.c.id == worker_id, workers.c.retired_at.is_(None))
        .values(draining=draining)
        .returning(workers)
    )
    row = conn.execute(statement).mappings().one_or_none()
    if row is None:
        raise NotFound(f"There is no live worker {worker_id}; `calotype workers list` shows which there are.")
    return Worker.from_row(row)


def retire(conn: sa.Connection, worker_id: UUID) -> None:
    """Ends a worker's registration; twice is harmless."""
    pending = sa.and_(workers.c.id == worker_id, workers.c.retired_at.is_(None))
    conn.execute(workers.update().where(pending).values(retired_at=sa.func.now()))


def retire_unseen(conn: sa.Connection, older_than_seconds: float) -> list[UUID]:
    """Retires workers that were not seen for so long; gives their ids."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    statement = (
        workers.update()
        .where(workers.c.retired_at.is_(None), workers.c.seen_at < sa.func.now() - age)
        .values(retired_at=sa.func.now())
        .returning(workers.c.id)
    )
    return list(conn.execute(statement).scalars())


def forget(conn: sa.Connection, older_than_seconds: float) -> int:
    """Drops the rows of workers retired so long ago; gives how many."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    return conn.execute(workers.delete().where(workers.c.retired_at < sa.func.now() - age)).rowcount


def list_workers(conn: sa.Connection, *, seen_within_seconds: float = 60.0) -> list[Worker]:
    """The workers that are there: not retired and seen lately, by name."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, seen_within_seconds)
    statement = (
        sa.select(workers)
        .where(workers.c.retired_at.is_(None), workers.c.seen_at > sa.func.now() - age)
        .order_by(workers.c.name, workers.c.id)
    )
    return [Worker.from_row(row) for row in conn.execute(statement).mappings()]
