"""GANs that their owners upload: put, registered, given up, collected."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from api_helpers import problem
from flask.testing import FlaskClient
from sqlalchemy import Engine

from api.app import create_app
from calotype import registry, tables
from calotype.artifacts import ObjectStore, model_upload_prefix
from calotype.database import transaction
from calotype.errors import Conflict
from calotype.jobs import Family
from calotype.model_uploads import collect_uploads, create_upload, hold_upload
from calotype.registry import ModelFile, NewVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

DESCRIPTION = {
    "architecture": "stylegan3-t",
    "generator": {"resolution": 64, "image_channels": 3, "num_layers": 14, "num_classes": 2},
    "labels": ["red", "blue"],
    "licence": None,
}
FOLDER = {"model.json": json.dumps(DESCRIPTION).encode(), "generator.safetensors": b"weights"}
#: Older than objects that are yet to be made: no margin.
AT_ONCE = -60.0
Upload = Callable[..., str]


@pytest.fixture
def put(client: FlaskClient) -> Upload:
    """``put(files)``: announces a folder, puts it where it was told to, and gives the upload's id."""

    def send(files: dict[str, bytes] = FOLDER, announced: dict[str, bytes] = FOLDER) -> str:
        response = client.post("/v1/models/uploads", json=announcement(announced))
        assert response.status_code == 202, response.text
        assert response.json is not None
        for place in response.json["files"]:
            if place["path"] in files:
                assert httpx.put(place["url"], content=files[place["path"]]).is_success
        return str(response.json["id"])

    return send


def announcement(files: dict[str, bytes]) -> dict[str, Any]:
    return {"files": [{"path": path, "bytes": len(data)} for path, data in files.items()]}


def registration(upload: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "family": "gan",
        "architecture": "stylegan3-t",
        "licence": "proprietary",
        "source": {"type": "upload", "id": upload},
        **changes,
    }


def keys(store: ObjectStore) -> list[str]:
    return [stored.key for stored in store.list_keys("tenants/")]


def versions(engine: Engine) -> int:
    with transaction(engine) as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(tables.model_versions)).scalar_one())


def test_an_uploaded_folder_becomes_a_version_and_goes_with_it(
    client: FlaskClient, put: Upload, store: ObjectStore, tenant: Tenant
) -> None:
    upload = put()
    assert keys(store) == [f"tenants/{tenant.id}/model-uploads/{upload}/{name}" for name in sorted(FOLDER)]
    response = client.post("/v1/models", json=registration(upload))
    assert response.status_code == 201, response.text
    made = response.json
    assert made is not None
    assert (made["ref"], made["source"]) == ("mine@1", {"type": "upload", "id": upload})
    assert {file["path"]: file["bytes"] for file in made["files"]} == {name: len(d) for name, d in FOLDER.items()}
    body = {"kind": "generate", "family": "gan", "model": "mine", "input": {"label": "red", "seed": 1}}
    job = client.post("/v1/jobs", json=body).json
    assert job is not None
    assert job["model"] == "mine@1"
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete("/v1/models/mine").status_code == 204
    assert keys(store) == []


def test_an_upload_is_one_version(client: FlaskClient, put: Upload, store: ObjectStore) -> None:
    upload = put()
    assert client.post("/v1/models", json=registration(upload)).status_code == 201
    again = client.post("/v1/models", json=registration(upload))
    assert problem(again)[:2] == (409, "conflict")
    assert "registered model already" in again.text
    assert problem(client.delete(f"/v1/models/uploads/{upload}"))[:2] == (409, "conflict")
    assert len(keys(store)) == 2


def test_nobody_reaches_the_upload_of_another_tenant(
    client: FlaskClient, stranger: FlaskClient, put: Upload, store: ObjectStore, engine: Engine
) -> None:
    upload = put()
    assert problem(stranger.post("/v1/models", json=registration(upload))) == (422, "invalid_request", ["source.id"])
    assert stranger.delete(f"/v1/models/uploads/{upload}").status_code == 204
    assert (versions(engine), len(keys(store))) == (0, 2)
    assert client.post("/v1/models", json=registration(upload)).status_code == 201


@pytest.mark.parametrize(
    ("body", "loc"),
    [
        ({"files": []}, "files"),
        (announcement({**FOLDER, "weights.bin": b"x"}), "files.2.path"),
        (announcement({**FOLDER, "../generator.safetensors": b"x"}), "files.2.path"),
        (announcement({**FOLDER, "discriminator.safetensors": b""}), "files.2.bytes"),
        (announcement({"model.json": b"{}"}), ""),
        ({"files": [*announcement(FOLDER)["files"], {"path": "model.json", "bytes": 2}]}, ""),
        ({"files": [{"path": "model.json", "bytes": 2 << 20}, {"path": "generator.safetensors", "bytes": 1}]}, ""),
        ({"files": [{"path": "model.json", "bytes": 9}, {"path": "generator.safetensors", "bytes": 3 << 30}]}, "files"),
    ],
    ids=["none", "a pickle", "climbing", "empty", "no weights", "twice", "long description", "too much"],
)
def test_what_is_no_gan_is_refused_before_anything_is_sent(client: FlaskClient, body: dict[str, Any], loc: str) -> None:
    assert problem(client.post("/v1/models/uploads", json=body)) == (422, "invalid_request", [loc])


def test_half_an_upload_cannot_be_registered_and_can_be_given_up(
    client: FlaskClient, put: Upload, store: ObjectStore, engine: Engine
) -> None:
    upload = put({"model.json": FOLDER["model.json"]})
    response = client.post("/v1/models", json=registration(upload))
    assert problem(response) == (422, "invalid_request", ["source.id"])
    assert "holds no generator.safetensors" in response.text
    for _ in range(2):
        assert client.delete(f"/v1/models/uploads/{upload}").status_code == 204
    assert (versions(engine), keys(store)) == (0, [])
    assert problem(client.delete("/v1/models/uploads/mine"))[:2] == (404, "not_found")


def test_more_than_was_announced_is_not_registered(
    client: FlaskClient, put: Upload, settings: Settings, engine: Engine, store: ObjectStore
) -> None:
    upload = put({**FOLDER, "generator.safetensors": bytes(4096)})
    small = create_app(replace(settings, max_upload_bytes=2048), engine=engine, store=store)
    narrow = small.test_client()
    narrow.environ_base.update(client.environ_base)
    response = narrow.post("/v1/models", json=registration(upload))
    assert problem(response) == (422, "invalid_request", ["source.id"])
    assert "holds more than the" in response.text
    assert versions(engine) == 0
    small.extensions["calotype"].doorbell.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": {"type": "upload", "id": "../x"}}, "match"),
        ({"family": "diffusion", "architecture": "lora", "base": "x"}, "uploads are for GANs only"),
    ],
)
def test_an_upload_is_named_by_its_id_and_is_a_gan(client: FlaskClient, changes: dict[str, Any], message: str) -> None:
    response = client.post("/v1/models", json=registration(str(UUID(int=0)), **changes))
    assert response.status_code == 422
    assert message in response.text


def test_an_upload_that_nobody_registers_is_collected_and_a_model_is_spared(
    client: FlaskClient, put: Upload, engine: Engine, store: ObjectStore, tenant: Tenant
) -> None:
    kept, left = put(), put()
    client.post("/v1/models", json=registration(kept))
    own_import = f"tenants/{tenant.id}/imports/mine/generator.safetensors"
    store.put_bytes(own_import, b"weights")
    assert collect_uploads(engine, store, 3600.0) == 0
    assert len(keys(store)) == 5
    assert collect_uploads(engine, store, AT_ONCE) == 1
    assert left not in "".join(keys(store))
    prefix = model_upload_prefix(tenant.id, UUID(kept))
    assert keys(store) == [own_import, *(prefix + name for name in sorted(FOLDER))]


@pytest.fixture
def uploaded(store: ObjectStore, tenant: Tenant) -> tuple[UUID, NewVersion]:
    """An upload, and the version that its files were read for."""
    upload = create_upload(store, tenant.id, list(FOLDER))
    prefix = model_upload_prefix(tenant.id, upload.id)
    for name, data in FOLDER.items():
        store.put_bytes(prefix + name, data)
    files = [ModelFile(path=name, object_key=prefix + name, bytes=1, sha256="a" * 64) for name in FOLDER]
    new = NewVersion(
        name="mine",
        tenant_id=tenant.id,
        family=Family.GAN,
        architecture="r3gan",
        files=files,
        source={"type": "upload"},
    )
    return upload.id, new


def test_a_version_is_not_made_of_files_that_were_collected_while_they_were_read(
    engine: Engine, store: ObjectStore, tenant: Tenant, uploaded: tuple[UUID, NewVersion]
) -> None:
    upload_id, new = uploaded
    assert collect_uploads(engine, store, AT_ONCE) == 1
    with transaction(engine) as conn, pytest.raises(Conflict, match="were removed meanwhile"):
        hold_upload(conn, store, tenant.id, upload_id, new.files)


def test_the_collector_waits_for_a_registration_and_then_spares_its_files(
    engine: Engine,
    store: ObjectStore,
    tenant: Tenant,
    uploaded: tuple[UUID, NewVersion],
    eventually: Callable[..., object],
) -> None:
    upload_id, new = uploaded
    removed: list[int] = []
    collector = threading.Thread(target=lambda: removed.append(collect_uploads(engine, store, AT_ONCE)))
    with transaction(engine) as conn:
        hold_upload(conn, store, tenant.id, upload_id, new.files)
        registry.register_version(conn, new)
        collector.start()
        eventually(lambda: _waits_for_a_lock(engine), timeout=30)
    collector.join(30)
    assert removed == [0]
    assert len(keys(store)) == 2


def _waits_for_a_lock(engine: Engine) -> bool:
    query = sa.text("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)")
    with transaction(engine) as conn:
        return bool(conn.execute(query).scalar_one())
