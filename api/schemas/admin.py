"""Tenants and their keys."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from pydantic import Field

from api.schemas.answers import Answer, Page


class Tenant(Answer):
    """Who owns jobs, datasets and models."""

    id: UUID
    name: str
    weight: float = Field(description="Share of the device time beside other tenants that wait, too.")
    max_queued: int | None = Field(description="Most jobs that may wait; null: no limit.")
    max_running: int | None = Field(description="Most jobs that may run at once; null: no limit.")
    created_at: datetime


class Key(Answer):
    """An API key, without the key itself."""

    id: UUID
    tenant: str
    name: str
    prefix: str = Field(description="The key's first characters, to recognise it by.")
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class IssuedKey(Key):
    """A key that was just made."""

    key: str = Field(description="The key itself. It is shown this once and stored only as a hash.")


class TenantPage(Page[Tenant]):
    """Tenants."""


class KeyPage(Page[Key]):
    """Keys."""
