"""Idempotency keys: the same key and body give the same job, another body is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from calotype import tables
from calotype.errors import Invalid

keys = tables.idempotency_keys


def recall(conn: sa.Connection, tenant_id: UUID, key: str, body: BaseModel) -> UUID | None:
    """The job that this key made, or None; holds the key against a concurrent request until the transaction ends.

    Raises:
        Invalid: the key was used with another body; code ``idempotency_mismatch``.
    """
    # The second of two concurrent requests waits here and then finds what the first has written.
    hold(conn, tenant_id, [key])
    row = conn.execute(
        sa.select(keys.c.job_id, keys.c.body_sha256).where(keys.c.tenant_id == tenant_id, keys.c.key == key)
    ).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != _digest(body):
        raise Invalid(
            "This Idempotency-Key was used with another body; use a new key for a new request.",
            code="idempotency_mismatch",
        )
    found: UUID = row.job_id
    return found


def hold(conn: sa.Connection, tenant_id: UUID, given: Iterable[str]) -> None:
    """Holds keys until the transaction ends; in one order, so that no two transactions wait for each other."""
    for key in sorted(set(given)):
        lock = sa.func.hashtextextended(f"idempotency:{tenant_id}:{key}", 0)
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def remember(conn: sa.Connection, tenant_id: UUID, key: str, body: BaseModel, job_id: UUID) -> None:
    """Ties the key to the job, in the transaction that makes the job."""
    conn.execute(keys.insert().values(tenant_id=tenant_id, key=key, body_sha256=_digest(body), job_id=job_id))


def forget(conn: sa.Connection, older_than_seconds: float) -> int:
    """Drops old keys; gives how many."""
    age = sa.func.make_interval(0, 0, 0, 0, 0, 0, older_than_seconds)
    return conn.execute(keys.delete().where(keys.c.created_at < sa.func.now() - age)).rowcount


def _digest(body: BaseModel) -> bytes:
    # Of what was understood, not of the bytes: spacing and the order of keys do not make another request.
    canonical: Any = body.model_dump(mode="json")
    secret = getattr(getattr(body, "webhook", None), "secret", None)
    if secret is not None:
        # Masked in what is dumped, and yet a part of what was asked.
        canonical["webhook"]["secret"] = secret.get_secret_value()
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).digest()
