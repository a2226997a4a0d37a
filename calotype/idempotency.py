"""Idempotency keys: the same key and body give the same job, another body is refused.

The job and its key are written by one statement (:func:`calotype.queue.submit`); of two requests at once with the same
key the second waits there for the first to commit, and then finds what that has made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from pydantic import BaseModel

from calotype import tables
from calotype.errors import Conflict, Invalid

keys = tables.idempotency_keys


class KeyUsed(Conflict):
    """The key has made a job before: :func:`recall` gives it."""


@dataclass(frozen=True, kw_only=True)
class RequestKey:
    """A client's key, with the digest of the body that it came with."""

    key: str
    body_sha256: bytes

    @classmethod
    def of(cls, key: str, body: BaseModel) -> Self:
        return cls(key=key, body_sha256=_digest(body))


def recall(conn: sa.Connection, tenant_id: UUID, given: RequestKey) -> UUID | None:
    """The job that this key made, or None.

    Raises:
        Invalid: the key was used with another body; code ``idempotency_mismatch``.
    """
    found = sa.select(keys.c.job_id, keys.c.body_sha256).where(keys.c.tenant_id == tenant_id, keys.c.key == given.key)
    row = conn.execute(found).one_or_none()
    if row is None:
        return None
    if row.body_sha256 != given.body_sha256:
        raise Invalid(
            "This Idempotency-Key was used with another body; use a new key for a new request.",
            code="idempotency_mismatch",
        )
    job_id: UUID = row.job_id
    return job_id


def hold(conn: sa.Connection, tenant_id: UUID, given: Iterable[str]) -> None:
    """Holds keys until the transaction ends, for one that uses many: in one order, so that no two of them wait for each
    other."""
    for key in sorted(set(given)):
        lock = sa.func.hashtextextended(f"idempotency:{tenant_id}:{key}", 0)
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


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
