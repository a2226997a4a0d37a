"""Datasets over HTTP: uploaded, announced, refused, listed, deleted."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from api_helpers import problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from api.app import create_app
from api.uploads import UploadRequest
from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import DatasetLimits, import_shared
from calotype.settings import Settings


@pytest.fixture(autouse=True)
def upload_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server keeps uploads while it reads them."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def is_empty(engine: Engine, store: ObjectStore) -> bool:
    with transaction(engine) as conn:
        rows = conn.execute(sa.select(sa.func.count()).select_from(tables.datasets)).scalar_one()
    return rows == 0 and not list(store.list_keys(""))


def test_an_uploaded_archive_becomes_a_dataset(
    client: FlaskClient, upload: Callable[..., Any], upload_folder: Path
) -> None:
    response = upload(client)
    assert response.status_code == 201
    dataset = response.json
    assert response.headers["Location"] == f"/v1/datasets/{dataset['id']}"
    assert (dataset["name"], dataset["images"], dataset["labels"]) == ("brand", 2, ["blue", "red"])
    assert dataset["shared"] is False
    assert client.get(response.headers["Location"]).json == dataset
    assert client.get("/v1/datasets/brand").json == dataset
    assert list(upload_folder.iterdir()) == []


def test_equal_content_is_the_same_dataset(
    client: FlaskClient, upload: Callable[..., Any], make_archive: Callable[..., bytes]
) -> None:
    data = make_archive()
    assert upload(client, data=data).json["id"] == upload(client, name="again", data=data).json["id"]


def test_a_refused_archive_names_the_file_and_leaves_nothing(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    upload: Callable[..., Any],
    make_archive: Callable[..., bytes],
    upload_folder: Path,
) -> None:
    refused = {
        "not_an_image": make_archive(extra={"blue/notes.png": b"no image"}),
        "path_escapes": make_archive(extra={"../../etc/passwd.png": b"x"}),
        "archive_unreadable": b"neither zip nor tar",
        "empty_dataset": make_archive(names=()),
    }
    for code, data in refused.items():
        response = upload(client, data=data)
        assert problem(response)[:2] == (422, code)
        assert response.json["errors"][0]["loc"][0] == "file"
    assert "blue/notes.png" in upload(client, data=refused["not_an_image"]).json["detail"]
    assert is_empty(engine, store)
    assert list(upload_folder.iterdir()) == []


def test_a_form_with_wrong_parts_is_refused(
    client: FlaskClient, engine: Engine, store: ObjectStore, make_archive: Callable[..., bytes]
) -> None:
    def file() -> tuple[io.BytesIO, str]:
        return io.BytesIO(make_archive()), "a.zip"

    wrong: list[tuple[dict[str, Any], list[str]]] = [
        ({"name": "brand"}, ["file"]),
        ({"file": file()}, ["name"]),
        ({"name": "brand", "file": "not a file"}, ["file", "file"]),
        ({"name": ["a", "b"], "file": file()}, ["name"]),
        ({"name": "brand", "file": [file(), file()]}, ["file"]),
        ({"name": "brand", "file": file(), "colour": "red"}, ["colour"]),
        ({"name": "No Name!", "file": file()}, ["name"]),
        ({"name": "\x00", "file": file()}, ["name"]),
    ]
    for form, fields in wrong:
        response = client.post("/v1/datasets", data=form, content_type="multipart/form-data")
        assert problem(response) == (422, "invalid_request", fields)
    assert is_empty(engine, store)


def test_a_broken_form_is_malformed(client: FlaskClient, make_archive: Callable[..., bytes]) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\n'
    for data, content_type in [
        (head + make_archive(), "multipart/form-data; boundary=x"),
        (head, "multipart/form-data"),
    ]:
        response = client.post("/v1/datasets", data=data, content_type=content_type)
        assert problem(response) == (400, "malformed_request", [])
    assert problem(client.post("/v1/datasets", data=b"x", content_type="text/csv"))[0] == 415


def test_an_upload_beyond_the_limit_is_refused_before_it_is_read(
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    client: FlaskClient,
    upload_folder: Path,
) -> None:
    small = create_app(replace(settings, max_upload_bytes=1 << 20), engine=engine, store=store)
    narrow = small.test_client()
    narrow.environ_base.update(client.environ_base)
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * (2 << 20)
    content_type = "multipart/form-data; boundary=x"
    assert problem(narrow.post("/v1/datasets", data=form, content_type=content_type)) == (413, "too_large", [])
    # A body that does not say how long it is.
    chunked = narrow.post(
        "/v1/datasets",
        input_stream=io.BytesIO(form),
        content_type=content_type,
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert problem(chunked) == (413, "too_large", [])
    assert list(upload_folder.iterdir()) == []
    small.extensions["calotype"].doorbell.close()


def test_an_announced_archive_is_put_to_the_store_and_completed(
    client: FlaskClient, stranger: FlaskClient, store: ObjectStore, make_archive: Callable[..., bytes]
) -> None:
    announced = client.post("/v1/datasets", json={"name": "large"})
    assert announced.status_code == 202
    place = announced.json
    assert place is not None
    assert problem(client.post(place["complete"]))[:2] == (409, "upload_missing")
    assert problem(client.get(f"/v1/datasets/{place['id']}"))[0] == 404
    httpx.request(place["method"], place["url"], content=make_archive(), trust_env=False).raise_for_status()
    assert problem(stranger.post(place["complete"]))[:2] == (404, "not_found")
    completed = client.post(place["complete"])
    assert completed.status_code == 201
    assert completed.json is not None
    assert completed.json["id"] == place["id"]
    assert client.post(place["complete"]).json == completed.json
    assert [stored.key for stored in store.list_keys("") if "/uploads/" in stored.key] == []


def test_an_announced_archive_that_is_refused_leaves_nothing(
    client: FlaskClient, engine: Engine, store: ObjectStore
) -> None:
    place = client.post("/v1/datasets", json={"name": "large"}).json
    assert place is not None
    httpx.put(place["url"], content=b"no archive", trust_env=False).raise_for_status()
    assert problem(client.post(place["complete"]))[:2] == (422, "archive_unreadable")
    assert is_empty(engine, store)


def test_a_list_holds_the_own_and_the_shared_datasets(
    client: FlaskClient,
    stranger: FlaskClient,
    settings: Settings,
    engine: Engine,
    store: ObjectStore,
    upload: Callable[..., Any],
    make_archive: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    archive = tmp_path / "shared.zip"
    archive.write_bytes(make_archive(names=("all/1.png",)))
    shared = import_shared(engine, store, archive, "for-all", DatasetLimits.of(settings))
    mine = [
        upload(client, f"brand-{n}", make_archive(names=tuple(f"a/{i}.png" for i in range(n)))).json["id"]
        for n in (2, 3)
    ]
    first = client.get("/v1/datasets?limit=2").json
    assert first is not None
    rest = client.get(f"/v1/datasets?limit=2&cursor={first['next_cursor']}").json
    assert rest is not None
    assert [one["id"] for one in first["data"] + rest["data"]] == [*reversed(mine), shared.id]
    theirs = stranger.get("/v1/datasets").json
    assert theirs is not None
    assert [(one["id"], one["shared"]) for one in theirs["data"]] == [(shared.id, True)]
    assert problem(stranger.delete(f"/v1/datasets/{shared.id}"))[:2] == (403, "forbidden")


def test_a_dataset_of_another_tenant_does_not_exist(
    client: FlaskClient, stranger: FlaskClient, upload: Callable[..., Any]
) -> None:
    path = f"/v1/datasets/{upload(client).json['id']}"
    for response in (stranger.get(path), stranger.delete(path), stranger.post(f"{path}/complete")):
        assert problem(response)[:2] == (404, "not_found")
    for name in ("ds_0", "%00", "x" * 300, "Brand"):
        assert problem(client.get(f"/v1/datasets/{name}"))[0] == 404
        assert problem(client.delete(f"/v1/datasets/{name}"))[0] == 404


def test_a_dataset_is_deleted_unless_a_job_needs_it(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    upload: Callable[..., Any],
    make_model: Callable[..., Any],
) -> None:
    make_model("small-model")
    dataset = upload(client).json["id"]
    train = {
        "kind": "train",
        "family": "diffusion",
        "model": "small-model",
        "input": {"dataset": "brand", "steps": 1, "output_model": "mine"},
    }
    job = client.post("/v1/jobs", json=train).json
    assert job is not None
    assert job["spec"]["input"]["dataset"] == dataset
    assert problem(client.delete(f"/v1/datasets/{dataset}"))[:2] == (409, "dataset_in_use")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 204
    assert is_empty(engine, store)


def test_a_full_disk_is_told_with_a_remedy(
    client: FlaskClient, upload: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("rb+", buffering=0) as full:
        monkeypatch.setattr(UploadRequest, "_get_file_stream", lambda *_args, **_kwargs: full)
        response = upload(client)
    assert problem(response)[:2] == (503, "disk_full")
    assert "TMPDIR" in response.json["detail"]


def test_uploads_go_to_disk_and_not_to_memory(app: Flask) -> None:
    with app.test_request_context(
        "/v1/datasets", method="POST", data={"name": "x", "file": (io.BytesIO(b"x"), "a.zip")}
    ) as context:
        stream = context.request.files["file"].stream
        assert Path(stream.name).read_bytes() == b"x"
        context.request.close()
        assert not Path(stream.name).exists()
