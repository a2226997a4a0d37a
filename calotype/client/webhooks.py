"""Calls about webhooks: what was told of ended jobs, and the secret that signs it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from urllib.parse import quote

from calotype.client.connection import Connection
from calotype.client.errors import Json


class WebhookCalls(Connection):
    """`/v1/webhooks`."""

    def webhook_deliveries(
        self, *, job: str | None = None, state: str | None = None, limit: int | None = None
    ) -> Iterator[Json]:
        """What was told of ended jobs, newest first; at most ``limit``."""
        filters = {name: value for name, value in {"job": job, "state": state}.items() if value is not None}
        return islice(self._pages("/v1/webhooks/deliveries", filters), limit)

    def webhook_delivery(self, delivery_id: str) -> Json:
        return self._call("GET", f"/v1/webhooks/deliveries/{quote(delivery_id, safe='')}")

    def replay_webhook(self, delivery_id: str) -> Json:
        """Send a delivery again, whatever became of it."""
        return self._call("POST", f"/v1/webhooks/deliveries/{quote(delivery_id, safe='')}/replay", repeatable=True)

    def webhook_secret(self) -> Json:
        """What signs the webhooks that bring no secret of their own: ``{"secret", "previous_until"}``."""
        return self._call("GET", "/v1/webhooks/secret")

    def rotate_webhook_secret(self) -> Json:
        """A new one; for a day both sign."""
        return self._call("POST", "/v1/webhooks/secret/rotate")
