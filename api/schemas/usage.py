"""What tenants used."""

from __future__ import annotations

from datetime import date

from pydantic import Field

from api.schemas.answers import Answer, Page


class Usage(Answer):
    """What a tenant used, on one day and in one queue."""

    tenant: str
    day: date = Field(description="In UTC.")
    queue: str
    jobs: int = Field(description="Jobs that ended.")
    cached: int = Field(description="Those of them that were answered from an equal one.")
    images: int
    gpu_seconds: float = Field(description="Device-seconds of all attempts that were over on that day, lost ones too.")


class UsagePage(Page[Usage]):
    """Usage."""
