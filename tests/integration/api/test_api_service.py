"""Health, metrics, documentation, and the one shape of every error."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from api_helpers import generate, problem
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from sqlalchemy import Engine

import starter
from api.app import create_app
from api.examples import JOB_EXAMPLES
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine
from calotype.jobs import Family, Job
from calotype.settings import Settings

NOWHERE = "127.0.0.1:1"


# --- Errors ---


def test_an_error_has_every_member_of_the_shape(client: FlaskClient) -> None:
    response = client.get("/v1/jobs?limit=0", headers={"X-Request-ID": "mine-1"})
    assert response.content_type == "application/problem+json"
    assert response.headers["X-Request-ID"] == "mine-1"
    assert response.json == {
        "type": "/docs#problem-invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "query.limit: input should be greater than or equal to 1",
        "instance": "/v1/jobs",
        "code": "invalid_request",
        "errors": [{"loc": ["query", "limit"], "msg": "input should be greater than or equal to 1"}],
        "error": {
            "message": "query.limit: input should be greater than or equal to 1",
            "type": "invalid_request_error",
            "code": "invalid_request",
            "param": "query.limit",
        },
    }


def test_what_the_routing_refuses_has_the_same_shape(client: FlaskClient) -> None:
    expected = [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("DELETE", "/v1/queues", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/jobs", 405, "method_not_allowed"),
        ("BREW", "/v1/jobs", 405, "method_not_allowed"),
    ]
    for method, path, status, code in expected:
        assert problem(client.open(path, method=method))[:2] == (status, code)
    assert client.put("/v1/jobs").headers["Allow"] == "GET, HEAD, POST"


def test_an_unexpected_error_is_a_problem_that_tells_nothing_but_the_request_id(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("calotype.queue.list_jobs", broken)
    response = client.get("/v1/jobs")
    assert problem(response)[:2] == (500, "internal_error")
    assert "a secret" not in response.text
    assert response.headers["X-Request-ID"] in response.text


def test_a_request_id_that_could_do_harm_is_replaced(anonymous: FlaskClient) -> None:
    for given in ("", "x" * 129, "a b", "{}", "<script>"):
        assert anonymous.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"] != given
    assert anonymous.get("/healthz", headers={"X-Request-ID": "a-1:b"}).headers["X-Request-ID"] == "a-1:b"


# --- Health ---


def test_a_healthy_service_is_ready(anonymous: FlaskClient) -> None:
    assert anonymous.get("/healthz").json == {"status": "ok"}
    ready = anonymous.get("/readyz")
    assert ready.status_code == 200
    assert ready.json is not None
    assert ready.json["status"] == "ok"


def test_without_broker_and_store_it_is_degraded_but_ready_and_takes_jobs(
    settings: Settings, engine: Engine, client: FlaskClient, make_model: Callable[..., Any]
) -> None:
    make_model("small-model")
    cut_off = replace(settings, broker_url=f"redis://{NOWHERE}/0", s3_endpoint=f"http://{NOWHERE}")
    app = create_app(cut_off, engine=engine)
    lonely = app.test_client()
    lonely.environ_base.update(client.environ_base)
    body = lonely.get("/readyz").json
    assert body is not None
    assert body["status"] == "degraded"
    assert {name: check["ok"] for name, check in body["checks"].items()} == {
        "postgres": True,
        "object_store": False,
        "broker": False,
    }
    assert lonely.post("/v1/jobs", json=generate()).status_code == 202
    app.extensions["calotype"].doorbell.close(0.1)


def test_without_postgres_it_is_alive_but_not_ready(settings: Settings, store: ObjectStore) -> None:
    away = replace(settings, database_url=f"postgresql://nobody@{NOWHERE}/nothing")
    app = create_app(away, engine=connect_engine(away, application_name="test"), store=store)
    client = app.test_client()
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert problem(ready)[:2] == (503, "dependency_down")
    assert ready.json is not None
    assert ready.json["checks"]["object_store"]["ok"] is True
    refused = client.get("/v1/jobs", headers={"Authorization": "Bearer x"})
    assert problem(refused)[:2] == (503, "dependency_down")
    assert int(refused.headers["Retry-After"]) > 0
    assert "calotype_postgres_up 0.0" in client.get("/metrics").text
    app.extensions["calotype"].close()


def test_services_that_hang_do_not_delay_the_answer(settings: Settings, engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nowhere = f"127.0.0.1:{silent.getsockname()[1]}"
        hung = replace(settings, broker_url=f"redis://{nowhere}/0", s3_endpoint=f"http://{nowhere}")
        app = create_app(hung, engine=engine)
        began = time.monotonic()
        body = app.test_client().get("/readyz").json
        assert time.monotonic() - began < 4
        assert body is not None
        assert (body["status"], body["checks"]["object_store"]["detail"]) == ("degraded", "No answer within 2 s.")
        app.extensions["calotype"].doorbell.close(0.1)


def test_metrics_tell_queues_and_requests(
    client: FlaskClient, anonymous: FlaskClient, make_job: Callable[..., Job]
) -> None:
    job = make_job()
    client.get(f"/v1/jobs/{job.id}")
    client.get("/nothing")
    text = anonymous.get("/metrics").text
    assert 'calotype_queue_depth{queue="diffusion.generate"} 1.0' in text
    assert 'calotype_queue_oldest_wait_seconds{queue="diffusion.train"} 0.0' in text
    assert 'calotype_http_requests_total{method="GET",route="/v1/jobs/<job_id>",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert str(job.id) not in text


# --- Documentation ---


@pytest.fixture
def document(anonymous: FlaskClient) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(anonymous.get("/openapi.json").data)
    return body


def test_the_document_is_valid_openapi_3_1_and_complete(app: Flask, document: dict[str, Any]) -> None:
    validate(document)
    assert document["openapi"].startswith("3.1")
    served = {
        (re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "pages.asset"
    }
    told = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert told == served
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["security"] or not path.startswith("/v1/")
            if method == "post" and path in {"/v1/jobs", "/v1/models", "/v1/admin/tenants", "/v1/admin/keys"}:
                assert operation["requestBody"]["content"]["application/json"]["examples"]
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references == set(document["components"]["schemas"])


def test_every_example_validates(document: dict[str, Any]) -> None:
    shown = 0
    for methods in document["paths"].values():
        for operation in methods.values():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            for example in (body or {}).get("examples", {}).values():
                schema = {**body["schema"], "components": document["components"]}
                Draft202012Validator(schema).validate(example["value"])
                shown += 1
    assert shown >= len(JOB_EXAMPLES)


def test_every_job_example_is_accepted_as_it_stands(
    client: FlaskClient,
    make_model: Callable[..., Any],
    upload: Callable[..., Any],
    make_archive: Callable[..., bytes],
) -> None:
    make_model("starter-diffusion")
    make_model("starter-gan", family=Family.GAN, architecture="r3gan", parameters=dict(starter.GAN.parameters))
    for number, name in enumerate(("starter-brand", "starter-logos-heldout")):
        upload(client, name, make_archive(names=tuple(f"a/{i}.png" for i in range(32 + number))))
    for example in JOB_EXAMPLES:
        response = client.post("/v1/jobs", json=example.value)
        assert response.status_code == 202, response.text


class _Assets(HTMLParser):
    """Collects what a page loads, where it links and which anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        if tag == "a":
            self.links.append(str(given.get("href")))
        elif given.get("src") or tag == "link":
            self.loads.append(str(given.get("src") or given.get("href")))
        assert not any(name.startswith("on") or name == "style" for name in given)


def test_the_page_shows_every_call_and_loads_only_own_assets(anonymous: FlaskClient, document: dict[str, Any]) -> None:
    assert anonymous.get("/").headers["Location"] == "/docs"
    page = anonymous.get("/docs")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assets = _Assets()
    assets.feed(page.text)
    for path in assets.loads:
        with anonymous.get(path) as asset:
            assert asset.status_code == 200
        assert path.startswith("/docs/docs.")
    assert {link[1:] for link in assets.links if link.startswith("#")} <= assets.anchors
    assert not [link for link in assets.links if "//" in link]
    for path, methods in document["paths"].items():
        assert path in page.text
        for operation in methods.values():
            assert operation["operationId"] in assets.anchors
    assert "problem-idempotency_mismatch" in assets.anchors
