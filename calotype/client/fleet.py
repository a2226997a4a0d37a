"""Calls about what runs: queues, workers, usage, and whether the API is ready."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import httpx

from calotype.client.connection import Connection
from calotype.client.errors import Json


class FleetCalls(Connection):
    """`/v1/queues`, `/v1/workers`, `/v1/usage` and `/readyz`."""

    def queues(self) -> list[Json]:
        return list(self._pages("/v1/queues"))

    def pause_queue(self, name: str, *, reason: str = "") -> Json:
        """Start no more jobs of a queue (scope admin); once more changes the reason."""
        path = f"/v1/queues/{quote(name, safe='')}/pause"
        return self._call("POST", path, json={"reason": reason}, repeatable=True)

    def resume_queue(self, name: str) -> Json:
        """Open a paused queue again (scope admin)."""
        return self._call("POST", f"/v1/queues/{quote(name, safe='')}/resume", repeatable=True)

    def workers(self) -> list[Json]:
        return list(self._pages("/v1/workers"))

    def drain_worker(self, worker_id: str) -> Json:
        """Let a worker take no more jobs (scope admin)."""
        return self._call("POST", f"/v1/workers/{quote(worker_id, safe='')}/drain", repeatable=True)

    def undrain_worker(self, worker_id: str) -> Json:
        """Let a drained worker take jobs again (scope admin)."""
        return self._call("POST", f"/v1/workers/{quote(worker_id, safe='')}/undrain", repeatable=True)

    def usage(self, *, first: str | None = None, last: str | None = None, tenant: str | None = None) -> Iterator[Json]:
        """What was used per UTC day and queue, newest first; of another tenant or of all (``*``) with scope admin."""
        asked = {"from": first, "to": last, "tenant": tenant}
        return self._pages("/v1/usage", {name: value for name, value in asked.items() if value is not None})

    def ready(self) -> bool:
        """Whether the API answers and has what it depends on."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False
