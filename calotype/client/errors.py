"""How a call ends that did not succeed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

Json = dict[str, Any]


class ClientError(Exception):
    """The call did not succeed."""


class ConnectionFailedError(ClientError):
    """The API could not be reached, or the connection broke."""


class ApiError(ClientError):
    """The API refused. ``detail`` says why and what to do; ``errors`` are the fields at fault."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        #: HTTP status.
        self.status = status
        #: Stable, for programs: `not_found`, `invalid_request`, …
        self.code = str(problem.get("code") or "unknown")
        self.title = str(problem.get("title") or f"HTTP {status}")
        self.detail = str(problem.get("detail") or self.title)
        #: ``[{"loc": ["input", "width"], "msg": "…"}]``
        self.errors: list[Json] = list(problem.get("errors") or [])
        self.request_id: str | None = problem.get("request_id")
        #: Seconds, on 429 and 503 when the server said so.
        self.retry_after: float | None = problem.get("retry_after")
        super().__init__(self.detail)


class JobTimeoutError(ClientError):
    """The job was not finished in time. It goes on; ``job`` is its last state."""

    def __init__(self, job: Json, timeout: float) -> None:
        super().__init__(f"Job {job['id']} is still {job['state']} after {timeout:g} s; it goes on.")
        self.job = job


class DownloadError(ClientError):
    """An artifact could not be fetched, or what came is not what the job made."""


def api_error(response: httpx.Response) -> ApiError:
    """What an answer that is not a success says; it need not come from the API (a proxy in between)."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    problem.setdefault("request_id", response.headers.get("X-Request-ID"))
    after = response.headers.get("Retry-After")
    if after is not None and after.replace(".", "", 1).isdigit():
        problem["retry_after"] = float(after)
    return ApiError(response.status_code, problem)


def no_answer(url: str, exc: httpx.TransportError) -> ConnectionFailedError:
    """What to say, and what to do, when nothing came back from ``url``."""
    if isinstance(exc, httpx.ConnectError):
        return ConnectionFailedError(
            f"Nothing answers at {url}. Start it with `calotype up`, or give the address with --url."
        )
    return ConnectionFailedError(f"{url} did not answer: {exc or type(exc).__name__}")
