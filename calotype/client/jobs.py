"""Calls about jobs: submit, look, wait, list, cancel."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import quote

import httpx

from calotype.client.connection import LARGEST_PAGE, Connection, pause
from calotype.client.errors import JobTimeoutError, Json

#: States that a job never leaves.
TERMINAL_STATES = frozenset({"succeeded", "failed", "canceled", "expired"})
#: The longest that the API holds a long poll.
LONGEST_POLL_SECONDS = 60.0
#: The most that one bulk call takes.
LARGEST_BULK_LINES, LARGEST_BULK_BYTES = 1000, 8 << 20


class JobCalls(Connection):
    """`/v1/jobs` and what is below it, but for events and artifacts."""

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a job; returns it at once, usually queued.

        A key is made up when none is given, so that a repeated try never makes a second job.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call("POST", "/v1/jobs", json=dict(spec), headers=headers, repeatable=True)

    def submit_bulk(self, specs: Iterable[Mapping[str, Any]]) -> Iterator[Json]:
        """Submit many jobs with few calls; gives ``{"index", "status", "job" or "problem"}`` for each, in order.

        A spec may carry an ``idempotency_key`` beside its members. One is made up where there is none, so that a
        repeated try never makes a second job.
        """
        first = 0
        for lines in _batches(specs):
            options: Json = {"content": b"".join(lines), "headers": {"Content-Type": "application/x-ndjson"}}
            options["timeout"] = httpx.Timeout(30.0, read=300.0)
            response = self._send("POST", "/v1/jobs:bulk", self._retries, options)
            # Only at "\n": a text may hold other characters that end lines.
            for answer in map(json.loads, filter(None, response.content.split(b"\n"))):
                yield {**answer, "index": first + answer["index"]}
            first += len(lines)

    def get(self, job_id: str) -> Json:
        return self._call("GET", f"/v1/jobs/{quote(job_id, safe='')}")

    def wait(
        self, job_id: str, *, timeout: float | None = None, on_progress: Callable[[Json], None] | None = None
    ) -> Json:
        """Long-poll until the job is in a terminal state and return it, whatever that state is.

        ``on_progress`` gets the job now and after every change. Raises JobTimeoutError.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        job, tag = self._look(job_id, {}, 0.0)
        while True:
            if on_progress is not None:
                on_progress(job)
            if job["state"] in TERMINAL_STATES:
                return job
            left = LONGEST_POLL_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0 and timeout is not None:
                raise JobTimeoutError(job, timeout)
            before, began = job, time.monotonic()
            job, tag = self._look(job_id, job, min(left, 30.0), tag)
            if job is before and time.monotonic() - began < min(left, 1.0):
                # The server has too many that wait and answers at once.
                pause(2)

    def jobs(
        self,
        *,
        state: str | None = None,
        kind: str | None = None,
        family: str | None = None,
        model: str | None = None,
        since: str | None = None,
        limit: int | None = None,
        page_size: int = LARGEST_PAGE,
    ) -> Iterator[Json]:
        """Jobs, newest first, over as many pages as are read; at most ``limit`` of them."""
        asked = {"state": state, "kind": kind, "family": family, "model": model, "since": since}
        filters = {name: value for name, value in asked.items() if value is not None}
        size = page_size if limit is None else min(limit, page_size)
        return islice(self._pages("/v1/jobs", filters, size), limit)

    def cancel(self, job_id: str) -> Json:
        """Ask for the end of a job; harmless when it has ended already."""
        return self._call("POST", f"/v1/jobs/{quote(job_id, safe='')}/cancel", repeatable=True)

    def retry(self, job_id: str) -> Json:
        """Submit the same spec again as a new job with ``retried_from``."""
        return self._call("POST", f"/v1/jobs/{quote(job_id, safe='')}/retry")

    def explain(self, job_id: str) -> Json:
        """Why a job waits: reasons, position and the interval within which it is expected to start."""
        return self._call("GET", f"/v1/jobs/{quote(job_id, safe='')}/explain")

    def quote(self, spec: Mapping[str, Any]) -> Json:
        """What a job would cost and how long it would wait, and whether it is valid; nothing is submitted."""
        return self._call("POST", "/v1/jobs", json=dict(spec), params={"dry_run": "true"}, repeatable=True)

    def delete(self, job_id: str) -> None:
        """Remove a finished job and its artifacts."""
        self._call("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def _look(self, job_id: str, known: Json, wait: float, tag: str | None = None) -> tuple[Json, str | None]:
        """The job and its ETag as soon as it differs from the ``known`` one, or after ``wait`` seconds."""
        options: Json = {"timeout": httpx.Timeout(30.0, read=wait + 30.0)}
        if tag is not None:
            options |= {"params": {"wait": f"{max(wait, 0.1):.1f}"}, "headers": {"If-None-Match": tag}}
        response = self._send("GET", f"/v1/jobs/{quote(job_id, safe='')}", self._retries, options)
        return (known if response.status_code == 304 else response.json()), response.headers.get("ETag")


def _batches(specs: Iterable[Mapping[str, Any]]) -> Iterator[list[bytes]]:
    """The lines of each call: no more than the API takes at once."""
    lines: list[bytes] = []
    size = 0
    for spec in specs:
        line = json.dumps({"idempotency_key": str(uuid.uuid4()), **spec}).encode() + b"\n"
        if lines and (len(lines) == LARGEST_BULK_LINES or size + len(line) > LARGEST_BULK_BYTES):
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield lines
