"""Queues and workers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from api.schemas.answers import Answer, Page


class Queue(Answer):
    """A queue, over all tenants."""

    name: str = Field(description="`<family>.<kind>`")
    depth: int = Field(description="Jobs that wait.")
    runnable: int = Field(description="Those of them that may start now; the others wait out a backoff.")
    running: int
    oldest_wait_seconds: float = Field(description="How long the oldest runnable job has waited; 0 for none.")
    workers: int = Field(description="Live workers that serve it.")
    at_least: bool = Field(
        description="Whether `depth` and `runnable` may be more: beyond 100,000 waiting jobs nobody counts on."
    )
    paused: bool = Field(description="Whether nothing is taken from it until it is resumed.")
    pause_reason: str | None = Field(description="What was said when it was paused.")
    paused_at: datetime | None


class Worker(Answer):
    """A live worker."""

    id: UUID
    name: str
    queues: list[str]
    pool: str = Field(description="Workers of a pool share out their device time among the tenants together.")
    state: Literal["starting", "idle", "busy", "draining"]
    draining: bool = Field(description="Whether it is to take no more jobs; `state` follows a little later.")
    device: dict[str, Any] = Field(description="What it computes on: `kind`, `name`, `memory_bytes`.")
    loaded_models: list[str] = Field(description="Those that you can see.")
    version: str
    started_at: datetime
    last_seen_at: datetime
    last_looked_at: datetime | None = Field(description="When it last asked for work.")


class QueuePage(Page[Queue]):
    """Queues."""


class WorkerPage(Page[Worker]):
    """Workers."""
