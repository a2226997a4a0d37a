"""The HTTP client: submit jobs, wait for them, fetch what they made.

::

    from calotype.client import Client

    with Client("http://127.0.0.1:8080", api_key="cal_…") as client:
        job = client.submit({"kind": "generate", "family": "diffusion", "model": "starter-diffusion",
                             "input": {"prompt": "blue bird logo", "num_images": 4}})
        job = client.wait(job["id"])
        client.download(job, Path("out"))

Answers are the JSON objects of the HTTP API as dictionaries (`docs/api.md`). Errors::

    ClientError
    ├── ConnectionFailedError  no answer, after the retries that the call allows
    ├── ApiError               an error answer; carries the problem+json: status, code, detail, errors
    ├── JobTimeoutError        `wait` ran out of time; the job goes on
    └── DownloadError          an artifact could not be fetched whole
"""

from __future__ import annotations

import ipaddress
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from calotype.transfers import TransferError, fetch, has_digest, plain_name

Json = dict[str, Any]

#: States that a job never leaves.
TERMINAL_STATES = frozenset({"succeeded", "failed", "canceled", "expired"})
#: The most that the API lists on one page.
LARGEST_PAGE = 100
#: The longest that the API holds a long poll.
LONGEST_POLL_SECONDS = 60.0
_RETRY_STATUSES = frozenset({502, 503, 504})
#: Larger archives go straight into the object store.
DIRECT_UPLOAD_BYTES = 256 << 20


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


class Client:
    """Talks to one Calotype API with one key. Safe to use from several threads.

    Args:
        url: where the API is, e.g. ``http://127.0.0.1:8080``.
        api_key: ``cal_…``; None only for the health calls.
        timeout: seconds to wait for an answer (long polls and transfers have their own limits).
        retries: how often a call that is safe to repeat is tried again when no answer comes.
    """

    def __init__(self, url: str, api_key: str | None, *, timeout: float = 30.0, retries: int = 4) -> None:
        self.url = url.rstrip("/")
        self._retries = retries
        headers = {"User-Agent": "calotype-client", "Accept": "application/json"}
        if api_key is not None:
            headers["Authorization"] = f"Bearer {api_key}"
        trust_env = not _is_loopback(self.url)  # a proxy of the environment cannot reach this machine's loopback
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=trust_env)
        # Presigned URLs carry their own authority: the key must not travel along.
        self._plain = httpx.Client(timeout=timeout, trust_env=trust_env)

    def close(self) -> None:
        self._http.close()
        self._plain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Jobs

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Submit a job; returns it at once, usually queued.

        A key is made up when none is given, so that a repeated try never makes a second job.
        """
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return self._call("POST", "/v1/jobs", json=dict(spec), headers=headers, repeatable=True)

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
            job, tag = self._look(job_id, job, min(left, 30.0), tag)

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

    def delete(self, job_id: str) -> None:
        """Remove a finished job and its artifacts."""
        self._call("DELETE", f"/v1/jobs/{quote(job_id, safe='')}")

    def download(
        self, job: Json | str, directory: Path | str, *, on_file: Callable[[Path], None] | None = None
    ) -> list[Path]:
        """Fetch every artifact of a job into ``directory``; each appears whole and checked or not at all.

        A file that is there already with the right digest is kept. Raises DownloadError.
        """
        job, directory = self.get(job) if isinstance(job, str) else job, Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        paths = []
        for artifact in job["artifacts"]:
            try:
                target = directory / plain_name(artifact["name"])
            except TransferError as exc:
                raise DownloadError(f"An artifact of job {job['id']} was not fetched: {exc}.") from exc
            if not has_digest(target, artifact["sha256"]):
                self._fetch(job["id"], artifact, target)
            paths.append(target)
            if on_file is not None:
                on_file(target)
        return paths

    # Datasets, models

    def upload_dataset(self, path: Path | str, *, name: str | None = None) -> Json:
        """Upload a zip or tar of images, perhaps with `metadata.jsonl`. Same content, same dataset."""
        path = Path(path)
        name = name or path.name.split(".")[0]
        slow = httpx.Timeout(30.0, read=600.0, write=600.0)
        with path.open("rb") as stream:
            if path.stat().st_size <= DIRECT_UPLOAD_BYTES:
                files = {"file": (path.name, stream)}
                return self._call("POST", "/v1/datasets", data={"name": name}, files=files, timeout=slow)
            announced = self._call("POST", "/v1/datasets", json={"name": name})
            try:
                answer = self._plain.put(announced["url"], content=stream, timeout=slow)
                answer.raise_for_status()
            except (httpx.TransportError, httpx.HTTPStatusError) as exc:
                raise ConnectionFailedError(f"{path} could not be put into the object store: {exc}") from exc
        return self._call("POST", announced["complete"], timeout=slow)

    def datasets(self) -> Iterator[Json]:
        return self._pages("/v1/datasets")

    def dataset(self, dataset_id: str) -> Json:
        return self._call("GET", f"/v1/datasets/{quote(dataset_id, safe='')}")

    def delete_dataset(self, dataset_id: str) -> None:
        self._call("DELETE", f"/v1/datasets/{quote(dataset_id, safe='')}")

    def models(self) -> Iterator[Json]:
        return self._pages("/v1/models")

    def model(self, name: str) -> Json:
        return self._call("GET", f"/v1/models/{quote(name, safe='@')}")

    def delete_model(self, name: str) -> None:
        """Delete all versions of a model of yours, or with ``name@version`` one."""
        self._call("DELETE", f"/v1/models/{quote(name, safe='@')}")

    # What runs

    def queues(self) -> list[Json]:
        return list(self._pages("/v1/queues"))

    def workers(self) -> list[Json]:
        return list(self._pages("/v1/workers"))

    def ready(self) -> bool:
        """Whether the API answers and has what it depends on."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # Administration (scope admin)

    def tenants(self) -> Iterator[Json]:
        return self._pages("/v1/admin/tenants")

    def create_tenant(self, name: str, **limits: Any) -> Json:
        return self._call("POST", "/v1/admin/tenants", json={"name": name, **limits})

    def keys(self, *, tenant: str | None = None) -> Iterator[Json]:
        return self._pages("/v1/admin/keys", {} if tenant is None else {"tenant": tenant})

    def create_key(self, tenant: str, *, name: str | None = None, scopes: list[str] | None = None) -> Json:
        """Make a key; its plaintext is in the answer and never shown again."""
        body: Json = {"tenant": tenant}
        if name is not None:
            body["name"] = name
        if scopes is not None:
            body["scopes"] = scopes
        return self._call("POST", "/v1/admin/keys", json=body)

    def rotate_key(self, key_id: str) -> Json:
        return self._call("POST", f"/v1/admin/keys/{quote(key_id, safe='')}/rotate")

    def revoke_key(self, key_id: str) -> None:
        self._call("DELETE", f"/v1/admin/keys/{quote(key_id, safe='')}")

    # How calls are made

    def _call(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> Json:
        safe = repeatable if repeatable is not None else method in ("GET", "DELETE")
        response = self._send(method, path, self._retries if safe else 0, options)
        if response.status_code == 204 or not response.content:
            return {}
        try:
            body = response.json()
        except ValueError as exc:
            raise ConnectionFailedError(
                f"{self.url} did not answer as a Calotype API would (no JSON); is the address right?"
            ) from exc
        return body if isinstance(body, dict) else {"data": body}

    def _send(self, method: str, path: str, retries: int, options: Json) -> httpx.Response:
        for attempt in range(retries + 1):
            last = attempt == retries
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as exc:
                if last:
                    raise ConnectionFailedError(_explain(self.url, exc)) from exc
            else:
                if response.is_success or response.status_code == 304:
                    return response
                if last or response.status_code not in _RETRY_STATUSES:
                    raise _api_error(response)
            _pause(attempt)
        raise AssertionError("unreachable")

    def _look(self, job_id: str, known: Json, wait: float, tag: str | None = None) -> tuple[Json, str | None]:
        """The job and its ETag as soon as it differs from the ``known`` one, or after ``wait`` seconds."""
        options: Json = {"timeout": httpx.Timeout(30.0, read=wait + 30.0)}
        if tag is not None:
            options |= {"params": {"wait": f"{max(wait, 0.1):.1f}"}, "headers": {"If-None-Match": tag}}
        response = self._send("GET", f"/v1/jobs/{quote(job_id, safe='')}", self._retries, options)
        return (known if response.status_code == 304 else response.json()), response.headers.get("ETag")

    def _pages(self, path: str, filters: Mapping[str, str] | None = None, size: int = LARGEST_PAGE) -> Iterator[Json]:
        params = {**(filters or {}), "limit": str(size)}
        while True:
            page = self._call("GET", path, params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params["cursor"] = page["next_cursor"]

    def _fetch(self, job_id: str, artifact: Json, target: Path) -> None:
        through_api = f"{self.url}/v1/jobs/{quote(job_id, safe='')}/artifacts/{quote(artifact['name'], safe='')}"
        reason: Exception | None = None
        for attempt in range(self._retries + 1):
            try:
                try:
                    fetch(self._plain, artifact["url"], target, artifact["sha256"])
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    # The object store may have no address that this machine can reach.
                    fetch(self._http, through_api, target, artifact["sha256"])
            except (httpx.TransportError, httpx.HTTPStatusError, TransferError) as exc:
                reason = exc
                _pause(attempt)
                # The URL may have expired: a fresh one is signed with every look at the job.
                fresh = {item["name"]: item for item in self.get(job_id)["artifacts"]}
                artifact = fresh.get(artifact["name"], artifact)
            else:
                return
        raise DownloadError(f"{artifact['name']} of job {job_id} could not be fetched: {reason}") from reason


def _pause(attempt: int) -> None:
    # Jitter, so that many clients do not come back at the same moment.
    time.sleep(min(0.2 * 2**attempt, 3.0) * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret


def _api_error(response: httpx.Response) -> ApiError:
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


def _explain(url: str, exc: httpx.TransportError) -> str:
    if isinstance(exc, httpx.ConnectError):
        return f"Nothing answers at {url}. Start it with `calotype up`, or give the address with --url."
    return f"{url} did not answer: {exc or type(exc).__name__}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
