"""What is to be told of a job that ended: written in the transaction that ends it, sent later.

So nobody is told of an end that was rolled back, and no end is forgotten by a process that dies after its commit.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype import tables
from calotype.ids import new_id
from calotype.jobs import Job
from calotype.webhooks.targets import place_of

deliveries = tables.webhook_deliveries
stops = tables.webhook_stops

STOPPED = "not sent: this URL has answered 410 before; replay the delivery when it takes webhooks again"


def put(conn: sa.Connection, job: Job) -> None:
    """Records the delivery of an ended job's webhook, if it has one."""
    if job.webhook is None:
        return
    url = job.webhook["url"]
    stopped = sa.exists().where(stops.c.tenant_id == job.tenant_id, stops.c.url == url)
    note = [{"at": _time(job.finished_at), "status_code": None, "error": STOPPED, "seconds": 0.0, "answer": None}]
    conn.execute(
        deliveries.insert().values(
            id=new_id(),
            tenant_id=job.tenant_id,
            job_id=job.id,
            url=url,
            host=place_of(url),
            secret=job.webhook.get("secret"),
            type=f"job.{job.state}",
            body=json.dumps(body_of(job), separators=(",", ":")),
            state=sa.case((stopped, "gone"), else_="pending"),
            log=sa.case((stopped, sa.literal(note, pg.JSONB)), else_=sa.literal([], pg.JSONB)),
            due_at=sa.case((stopped, None), else_=sa.func.clock_timestamp()),
        )
    )


def body_of(job: Job) -> dict[str, Any]:
    """The message: what ended and how. What it made is fetched with a key; no URL in it grants anything."""
    data = {
        "id": str(job.id),
        "kind": job.kind,
        "family": job.family,
        "model": job.model,
        "state": job.state,
        "attempt": job.attempt,
        "metadata": dict(job.metadata),
        "created_at": _time(job.created_at),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "retried_from": str(job.retried_from) if job.retried_from is not None else None,
        "error": job.error.as_dict() if job.error is not None else None,
        "urls": {"self": f"/v1/jobs/{job.id}"},
    }
    return {"type": f"job.{job.state}", "timestamp": _time(job.finished_at), "data": data}


def _time(value: datetime | None) -> str | None:
    return value.isoformat().replace("+00:00", "Z") if value is not None else None
