"""A light HTTP client, so that what is measured is the server: one kept connection, no pool, no retries."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

#: Longer than any answer should take, shorter than a measurement would hang.
TIMEOUT_SECONDS = 90.0


@dataclass(frozen=True)
class Answer:
    """Status and decoded JSON body."""

    status: int
    body: Any

    def expect(self, *statuses: int) -> Any:
        """The body; AssertionError when the status is none of ``statuses``."""
        if self.status not in statuses:
            raise AssertionError(f"the server answered {self.status}: {self.body}")
        return self.body


class Calls:
    """Not for use by two threads at once."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        self._headers = {"Content-Type": "application/json", **headers}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def get(self, path: str) -> Answer:
        return self._send("GET", path, None, {})

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return self._send("POST", path, None if body is None else json.dumps(body).encode(), headers or {})

    def _send(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        self._connection.request(method, path, body=body, headers={**self._headers, **headers})
        response = self._connection.getresponse()
        data = response.read()
        return Answer(response.status, json.loads(data) if data else None)
