"""Whether the service works."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas.answers import Answer


class Health(Answer):
    status: Literal["ok"] = "ok"


class Check(Answer):
    """Whether one service can be reached."""

    ok: bool
    detail: str | None = Field(description="What is wrong, when something is.")


class Checks(Answer):
    postgres: Check
    object_store: Check
    broker: Check


class Readiness(Answer):
    """Ready to take jobs; degraded when something slows or limits it."""

    status: Literal["ok", "degraded"]
    checks: Checks
