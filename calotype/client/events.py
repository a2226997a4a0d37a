"""The events of a job: read so far, or followed until it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import httpx

from calotype.client.connection import RETRY_STATUSES, Connection, pause
from calotype.client.errors import ApiError, Json, api_error, no_answer
from calotype.client.jobs import TERMINAL_STATES
from calotype.streams import MEDIA_TYPE, read_events

#: A stream says something every 15 s; one that is silent for so long is dead.
_SILENCE = httpx.Timeout(30.0, read=45.0)


class EventCalls(Connection):
    """`/v1/jobs/{id}/events`."""

    def events(self, job_id: str, *, after: int = 0, follow: bool = True) -> Iterator[Json]:
        """What happened to a job, ``{"seq", "type", "created_at", "data"}``, from the first event after ``after`` on.

        Goes on until the job has ended, over broken connections too: no event is missed or doubled. With ``follow``
        off it ends with what has happened so far.
        """
        path = f"/v1/jobs/{quote(job_id, safe='')}/events"
        return self._follow(path, after) if follow else self._pages(path, {"after": str(after)}, cursor="after")

    def _follow(self, path: str, after: int) -> Iterator[Json]:
        """Events over as many connections as it takes."""
        failures = 0
        while True:
            headers = {"Accept": MEDIA_TYPE, "Last-Event-ID": str(after)}
            try:
                with self._http.stream("GET", path, headers=headers, timeout=_SILENCE) as response:
                    if response.status_code == 204:
                        return
                    if not response.is_success:
                        response.read()
                        raise api_error(response)
                    for event in read_events(response.iter_bytes()):
                        failures, after = 0, event["seq"]
                        yield event
                        if event["type"] == "state" and event["data"]["state"] in TERMINAL_STATES:
                            return
                # The server stops, or had no room for one more that waits.
                failures = 0
            except httpx.TransportError as exc:
                failures += 1
                if failures > self._retries:
                    raise no_answer(self.url, exc) from exc
            except ApiError as exc:
                failures += 1
                if failures > self._retries or exc.status not in RETRY_STATUSES:
                    raise
            pause(max(failures, 2))
