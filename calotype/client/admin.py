"""Calls about tenants and their API keys (scope admin)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from calotype.client.connection import Connection
from calotype.client.errors import Json


class AdminCalls(Connection):
    """`/v1/admin`."""

    def tenants(self) -> Iterator[Json]:
        return self._pages("/v1/admin/tenants")

    def create_tenant(self, name: str, **limits: Any) -> Json:
        return self._call("POST", "/v1/admin/tenants", json={"name": name, **limits})

    def change_tenant(self, name: str, **changes: Any) -> Json:
        """Change ``weight``, ``max_queued`` or ``max_running`` (None: no limit) of a tenant."""
        return self._call("PATCH", f"/v1/admin/tenants/{quote(name, safe='')}", json=changes, repeatable=True)

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
