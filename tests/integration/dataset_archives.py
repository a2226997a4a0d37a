"""Dataset archives for the integration tests, and what is left of them in the services."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping

import sqlalchemy as sa
from PIL import Image

from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def zip_bytes(entries: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def captioned(*colours: str) -> bytes:
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} square", "label": colour} for colour in colours]
    metadata = "\n".join(json.dumps(row) for row in rows).encode()
    return zip_bytes({"metadata.jsonl": metadata, **{f"{colour}.png": png(colour) for colour in colours}})


def keys(store: ObjectStore) -> list[str]:
    return sorted(stored.key for stored in store.list_keys(""))


def rows(engine: sa.Engine) -> int:
    with transaction(engine) as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(tables.datasets)).scalar_one())
