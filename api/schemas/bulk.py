"""Many jobs at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.answers import Answer
from api.schemas.jobs import Job
from api.schemas.problems import Problem
from calotype.jobs import Kind


class BulkLine(BaseModel):
    """One line of a bulk submission: a request as `POST /v1/jobs` takes it, and beside its members:"""

    model_config = ConfigDict(extra="allow")

    kind: Kind
    idempotency_key: str | None = Field(
        default=None, description="Does for this line what the header `Idempotency-Key` does for a single job."
    )


class BulkAnswer(Answer):
    """What became of one line: `job` when it was accepted, else `problem`."""

    index: int = Field(description="Number of the line, from 0; empty lines are not counted.")
    status: int = Field(description="As `POST /v1/jobs` would have answered: 202, 422, 429, …")
    job: Job | None = None
    problem: Problem | None = None
    retry_after: float | None = Field(default=None, description="Seconds to wait before another try, with 429 and 503.")
