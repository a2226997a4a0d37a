"""The application on real services, and clients that hold every answer against the OpenAPI document."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from own_redis import Broker
from PIL import Image
from sqlalchemy import Engine
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from api import openapi
from api.app import create_app
from api.services import EXTENSION
from calotype import tenants
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.registry import ModelVersion
from calotype.settings import Settings
from calotype.tenants import Scope, Tenant

USER = (Scope.JOBS_READ, Scope.JOBS_WRITE)


@pytest.fixture
def app(settings: Settings, engine: Engine, store: ObjectStore) -> Iterator[Flask]:
    doorbell = Doorbell(settings)
    app = create_app(settings, engine=engine, store=store, doorbell=doorbell)
    app.test_client_class = ConformingClient
    yield app
    app.extensions[EXTENSION].watcher.close()
    doorbell.close()


class ConformingClient(FlaskClient):
    """Fails the test when an answer is not one that `/openapi.json` tells of."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        response = super().open(*args, **kwargs)
        check_conformance(self.application, response)
        return response


@functools.cache
def _document() -> dict[str, Any]:
    # The same for every application, and not made anew for every test.
    return openapi.document(current_app)


def check_conformance(app: Flask, response: TestResponse) -> None:
    with app.app_context():
        document = _document()
    assert response.headers.get("X-Request-ID")
    if response.status_code >= 400:
        assert response.content_type == "application/problem+json", response.text
        _validate({"$ref": "#/components/schemas/Problem"}, response.json, document)
        assert response.json is not None
        assert response.json["status"] == response.status_code
    try:
        adapter = app.url_map.bind("localhost")
        rule, _ = adapter.match(response.request.path, response.request.method, return_rule=True)
    except HTTPException:
        return
    if rule.endpoint == "pages.asset":
        return
    path = openapi.path_of(rule)
    answers = document["paths"][path][response.request.method.lower()]["responses"]
    assert str(response.status_code) in answers, f"{path} does not document {response.status_code}"
    if response.status_code >= 400:
        assert response.json is not None
        assert f"`{response.json['code']}`" in answers[str(response.status_code)]["description"]
    content = answers[str(response.status_code)].get("content", {})
    schema = content.get(response.mimetype, {}).get("schema")
    if schema is not None and response.status_code < 400:
        for value in _values(response):
            _validate(schema, value, document)


def _values(response: TestResponse) -> list[Any]:
    """The JSON of an answer: one value, or one a line."""
    if response.mimetype == "application/x-ndjson":
        return [json.loads(line) for line in response.text.split("\n") if line]
    return [response.json]


def _validate(schema: dict[str, Any], value: Any, document: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": document["components"]}).validate(value)


@pytest.fixture
def make_client(app: Flask, engine: Engine) -> Callable[..., FlaskClient]:
    """``make_client(tenant, *scopes)``: a client that sends a key of ``tenant`` with every call."""

    def make(tenant: Tenant, *scopes: Scope) -> FlaskClient:
        with transaction(engine) as conn:
            _, plaintext = tenants.create_key(conn, tenant, scopes=scopes or USER)
        client = app.test_client()
        client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {plaintext}"
        return client

    return make


@pytest.fixture
def client(make_client: Callable[..., FlaskClient], tenant: Tenant) -> FlaskClient:
    """A client of ``tenant`` that may read and write."""
    return make_client(tenant)


@pytest.fixture
def stranger(make_client: Callable[..., FlaskClient], make_tenant: Callable[..., Tenant]) -> FlaskClient:
    """A client of another tenant."""
    return make_client(make_tenant("strangers"))


@pytest.fixture
def admin(make_client: Callable[..., FlaskClient], make_tenant: Callable[..., Tenant]) -> FlaskClient:
    return make_client(make_tenant("operators"), Scope.ADMIN)


@pytest.fixture
def anonymous(app: Flask) -> FlaskClient:
    """A client without a key."""
    return app.test_client()


@pytest.fixture
def small_model(make_model: Callable[..., ModelVersion]) -> ModelVersion:
    """What the requests of `api_helpers` name."""
    return make_model("small-model")


@pytest.fixture
def make_archive() -> Callable[..., bytes]:
    """``make_archive(names=…)``: a zip of small images of different colours, one folder a label."""

    def make(names: tuple[str, ...] = ("blue/1.png", "red/1.png"), extra: dict[str, bytes] | None = None) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for number, name in enumerate(names):
                image = io.BytesIO()
                Image.new("RGB", (16, 16), (number * 40 % 256, 80, 120)).save(image, "PNG")
                archive.writestr(name, image.getvalue())
            for name, data in (extra or {}).items():
                archive.writestr(name, data)
        return buffer.getvalue()

    return make


@pytest.fixture
def upload(make_archive: Callable[..., bytes]) -> Callable[..., TestResponse]:
    """``upload(client, name="brand", data=…)`` sends an archive as a multipart form."""

    def send(client: FlaskClient, name: str = "brand", data: bytes | None = None) -> TestResponse:
        archive = make_archive() if data is None else data
        return client.post("/v1/datasets", data={"name": name, "file": (io.BytesIO(archive), "archive.zip")})

    return send


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A Redis of the test's own."""
    made = Broker(tmp_path)
    made.start()
    yield made
    made.stop()
