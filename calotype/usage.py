"""What tenants used, per UTC day and queue. Written by :mod:`calotype.queue`, read here."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from uuid import UUID

import sqlalchemy as sa

from calotype import tables

usage, tenants = tables.usage, tables.tenants


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of one tenant, on one day, in one queue."""

    tenant: str
    day: date
    queue: str
    #: Jobs that ended, and those of them that were answered from an equal one.
    jobs: int
    cached: int
    images: int
    #: Device-seconds of all attempts that were over on that day, lost ones too.
    gpu_seconds: float


def list_usage(conn: sa.Connection, first: date, last: date, tenant_id: UUID | None = None) -> list[Usage]:
    """From the first day to the last, both included, newest first; of one tenant or of all."""
    statement = (
        sa.select(
            tenants.c.name.label("tenant"),
            *(usage.c[name] for name in ("day", "queue", "jobs", "cached", "images", "gpu_seconds")),
        )
        .join(tenants, tenants.c.id == usage.c.tenant_id)
        .where(usage.c.day.between(first, last))
        .order_by(usage.c.day.desc(), tenants.c.name, usage.c.queue)
    )
    if tenant_id is not None:
        statement = statement.where(usage.c.tenant_id == tenant_id)
    return [Usage(**row) for row in conn.execute(statement).mappings()]
