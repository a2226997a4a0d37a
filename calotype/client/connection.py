"""One API over HTTP: a call with its retries, and a listing over its pages."""

from __future__ import annotations

import ipaddress
import random
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from calotype.client.errors import ConnectionFailedError, Json, api_error, no_answer

#: The most that the API lists on one page.
LARGEST_PAGE = 100
#: Answers that another try may change.
RETRY_STATUSES = frozenset({502, 503, 504})


class Connection:
    """What every group of calls stands on. See Client for the arguments."""

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
                    raise no_answer(self.url, exc) from exc
            else:
                if response.is_success or response.status_code == 304:
                    return response
                if last or response.status_code not in RETRY_STATUSES:
                    raise api_error(response)
            pause(attempt)
        raise AssertionError("unreachable")

    def _pages(
        self,
        path: str,
        filters: Mapping[str, str] | None = None,
        size: int = LARGEST_PAGE,
        *,
        cursor: str = "cursor",
    ) -> Iterator[Json]:
        params = {**(filters or {}), "limit": str(size)}
        while True:
            page = self._call("GET", path, params=params)
            yield from page["data"]
            if not page["has_more"]:
                return
            params[cursor] = page["next_cursor"]


def pause(attempt: int) -> None:
    """Sleep before the next try: 0.1 s to 3 s, longer with every attempt."""
    # Jitter, so that many clients do not come back at the same moment.
    time.sleep(min(0.2 * 2**attempt, 3.0) * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
