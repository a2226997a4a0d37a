"""Jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from api.schemas.answers import Answer, Page
from calotype.jobs import Family, Kind, State


class Progress(Answer):
    """How far a running job is."""

    fraction: float = Field(ge=0, le=1)
    step: int
    total: int
    stage: str = Field(description="What is being done, e.g. `denoising`.")
    eta_seconds: float | None = Field(description="Expected seconds to the end, where known.")


class Artifact(Answer):
    """A file that a job published."""

    name: str
    content_type: str
    bytes: int
    sha256: str
    width: int | None = Field(description="Pixels; null for what is not an image.")
    height: int | None
    seed: int | None = Field(description="Makes this image again.")
    url: str = Field(description="Presigned: needs no key, and works until `url_expires_at`.")
    url_expires_at: datetime


class JobError(Answer):
    """Why a job failed."""

    code: str = Field(description="Stable, e.g. `out_of_memory`.")
    title: str
    detail: str
    retryable: bool = Field(description="Whether submitting the job again may go better.")


class JobUrls(Answer):
    """Paths of what can be done with a job."""

    self: str
    events: str
    cancel: str
    retry: str
    explain: str


class Job(Answer):
    """A job: what was asked, where it stands, what came out."""

    id: UUID = Field(description="UUIDv7: sorts by time of submission.")
    kind: Kind
    family: Family
    model: str | None = Field(description="The pinned model, `name@version`.")
    state: State
    priority: int
    attempt: int = Field(description="Attempts that were started; an interrupted one that lost nothing is not counted.")
    max_attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When the job expires unless it has started.")
    progress: Progress | None
    spec: dict[str, Any] = Field(description="What was asked, completed with the defaults that were used.")
    result: dict[str, Any] | None
    artifacts: list[Artifact]
    artifacts_expired_at: datetime | None = Field(description="When its artifacts were deleted, at their time.")
    error: JobError | None
    metadata: dict[str, str]
    retried_from: UUID | None = Field(description="The job that this one repeats.")
    urls: JobUrls


class JobPage(Page[Job]):
    """Jobs."""
