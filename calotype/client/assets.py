"""Calls about what jobs work with: datasets and models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from calotype.client.connection import Connection
from calotype.client.errors import ClientError, ConnectionFailedError, Json

#: Larger archives go straight into the object store.
DIRECT_UPLOAD_BYTES = 256 << 20
#: Files on their way, and calls that read them all.
_SLOW = httpx.Timeout(30.0, read=600.0, write=600.0)


class AssetCalls(Connection):
    """`/v1/datasets` and `/v1/models`."""

    def upload_dataset(self, path: Path | str, *, name: str | None = None) -> Json:
        """Upload a zip or tar of images, perhaps with `metadata.jsonl`. Same content, same dataset."""
        path = Path(path)
        name = name or path.name.split(".")[0]
        if path.stat().st_size <= DIRECT_UPLOAD_BYTES:
            with path.open("rb") as stream:
                files = {"file": (path.name, stream)}
                return self._call("POST", "/v1/datasets", data={"name": name}, files=files, timeout=_SLOW)
        announced = self._call("POST", "/v1/datasets", json={"name": name})
        self._put(announced["url"], path)
        return self._call("POST", announced["complete"], timeout=_SLOW)

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

    def register_model(self, model: Mapping[str, Any], files: Sequence[Path] = ()) -> Json:
        """Register the next version of a model: a body of `POST /v1/models`.

        With ``files``, those of a GAN's folder, they are uploaded and become its ``source``. When that fails, what was
        uploaded is removed again.
        """
        if not files:
            return self._call("POST", "/v1/models", json=dict(model), timeout=_SLOW)
        announced = [{"path": path.name, "bytes": path.stat().st_size} for path in files]
        upload = self._call("POST", "/v1/models/uploads", json={"files": announced})
        paths = {path.name: path for path in files}
        try:
            for place in upload["files"]:
                self._put(place["url"], paths[place["path"]])
            source = {"type": "upload", "id": upload["id"]}
            return self._call("POST", "/v1/models", json={**model, "source": source}, timeout=_SLOW)
        except BaseException:
            # Also on Ctrl-C. If the version was made and only its answer lost, this is refused.
            with suppress(ClientError):
                self._call("DELETE", f"/v1/models/uploads/{upload['id']}")
            raise

    def delete_model(self, name: str) -> None:
        """Delete all versions of a model of yours, or with ``name@version`` one."""
        self._call("DELETE", f"/v1/models/{quote(name, safe='@')}")

    def _put(self, url: str, path: Path) -> None:
        """Streams a file to a presigned URL."""
        try:
            with path.open("rb") as stream:
                self._plain.put(url, content=stream, timeout=_SLOW).raise_for_status()
        except (httpx.TransportError, httpx.HTTPStatusError) as exc:
            raise ConnectionFailedError(f"{path} could not be put into the object store: {exc}") from exc
