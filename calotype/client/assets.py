"""Calls about what jobs work with: datasets and models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx

from calotype.client.connection import Connection
from calotype.client.errors import ConnectionFailedError, Json

#: Larger archives go straight into the object store.
DIRECT_UPLOAD_BYTES = 256 << 20


class AssetCalls(Connection):
    """`/v1/datasets` and `/v1/models`."""

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
