"""What happened to a job."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from api.schemas.answers import Answer, Page


class Event(Answer):
    """One thing that happened to a job."""

    seq: int = Field(description="From 1, in the order of what happened.")
    type: Literal["state", "progress", "checkpoint", "metrics", "log"]
    created_at: datetime
    data: dict[str, Any] = Field(description="What is in it depends on the type.")


class EventPage(Page[Event]):
    """Events of a job, oldest first."""

    next_cursor: str | None = Field(description="Give it as `after` to get the next page; null on the last.")
