"""Tenants, keys, queues and workers over HTTP, and who may do what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from api_helpers import problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from calotype import tables, tenants, workers
from calotype.database import transaction
from calotype.ids import new_id
from calotype.jobs import SERVED_QUEUES, Job
from calotype.tenants import Tenant
from calotype.workers import WorkerState


def with_key(app: Flask, key: str) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


# --- Tenants ---


def test_a_tenant_is_made_shown_and_changed(admin: FlaskClient) -> None:
    made = admin.post("/v1/admin/tenants", json={"name": "studio", "max_queued": 10, "weight": 2})
    assert made.status_code == 201
    assert made.headers["Location"] == "/v1/admin/tenants/studio"
    tenant = made.json
    assert tenant is not None
    assert (tenant["weight"], tenant["max_queued"], tenant["max_running"]) == (2.0, 10, None)
    assert admin.get("/v1/admin/tenants/studio").json == tenant
    changed = admin.patch("/v1/admin/tenants/studio", json={"max_queued": None, "max_running": 4}).json
    # What is left out stays.
    assert changed == {**tenant, "max_queued": None, "max_running": 4}
    assert admin.get("/v1/admin/tenants/studio").json == changed


def test_a_wrong_tenant_is_refused(admin: FlaskClient) -> None:
    admin.post("/v1/admin/tenants", json={"name": "studio"})
    assert problem(admin.post("/v1/admin/tenants", json={"name": "studio"}))[:2] == (409, "conflict")
    wrong: list[tuple[Any, str]] = [
        ({}, "name"),
        ({"name": "Studio"}, "name"),
        ({"name": "a", "max_queued": "1"}, "max_queued"),
        ({"name": "a", "max_queued": -1}, "max_queued"),
        ({"name": "a", "max_running": -1}, "max_running"),
        ({"name": "a", "weight": 0}, "weight"),
        ({"name": "a", "weight": None}, "weight"),
        ({"name": "a", "colour": 1}, "colour"),
    ]
    for body, loc in wrong:
        assert problem(admin.post("/v1/admin/tenants", json=body)) == (422, "invalid_request", [loc])
    assert problem(admin.patch("/v1/admin/tenants/studio", json={}))[:2] == (422, "invalid_request")
    assert problem(admin.patch("/v1/admin/tenants/studio", json={"weight": None}))[2] == ["weight"]
    assert problem(admin.patch("/v1/admin/tenants/studio", json={"name": "other", "max_queued": 1}))[2] == ["name"]
    for name in ("nobody", "%00", "x" * 300):
        assert problem(admin.get(f"/v1/admin/tenants/{name}"))[:2] == (404, "not_found")
        assert problem(admin.patch(f"/v1/admin/tenants/{name}", json={"max_queued": 1}))[:2] == (404, "not_found")


def test_tenants_are_listed_by_name_and_page(admin: FlaskClient, make_tenant: Callable[..., Tenant]) -> None:
    for name in ("c", "a", "b"):
        make_tenant(name)
    first = admin.get("/v1/admin/tenants?limit=2").json
    assert first is not None
    rest = admin.get(f"/v1/admin/tenants?limit=2&cursor={first['next_cursor']}").json
    assert rest is not None
    assert [one["name"] for one in first["data"] + rest["data"]] == ["a", "b", "c", "operators"]
    assert rest["has_more"] is False


# --- Keys ---


def test_a_key_is_shown_once_and_works(app: Flask, admin: FlaskClient, engine: Engine, tenant: Tenant) -> None:
    body = {"tenant": tenant.name, "name": "web shop", "scopes": ["jobs:read"]}
    made = admin.post("/v1/admin/keys", json=body)
    assert made.status_code == 201
    key = made.json
    assert key is not None
    assert key["key"].startswith(key["prefix"])
    client = with_key(app, key["key"])
    assert client.get("/v1/jobs").status_code == 200
    assert problem(client.post("/v1/jobs", json={}))[:2] == (403, "forbidden")
    listed = admin.get(f"/v1/admin/keys?tenant={tenant.name}").json
    assert listed is not None
    assert [(one["id"], one["name"], "key" in one) for one in listed["data"]] == [(key["id"], "web shop", False)]
    with transaction(engine) as conn:
        rows = conn.execute(sa.select(tables.api_keys)).all()
    assert key["key"] not in repr(rows)


def test_a_rotated_key_replaces_the_old_one_at_once(app: Flask, admin: FlaskClient, tenant: Tenant) -> None:
    old = admin.post("/v1/admin/keys", json={"tenant": tenant.name}).json
    assert old is not None
    new = admin.post(f"/v1/admin/keys/{old['id']}/rotate").json
    assert new is not None
    assert (new["tenant"], new["name"], new["scopes"]) == (old["tenant"], old["name"], old["scopes"])
    assert problem(with_key(app, old["key"]).get("/v1/jobs"))[:2] == (401, "unauthenticated")
    assert with_key(app, new["key"]).get("/v1/jobs").status_code == 200
    assert problem(admin.post(f"/v1/admin/keys/{old['id']}/rotate"))[:2] == (409, "conflict")


def test_a_revoked_key_is_refused_and_revoking_twice_is_harmless(
    app: Flask, admin: FlaskClient, tenant: Tenant
) -> None:
    key = admin.post("/v1/admin/keys", json={"tenant": tenant.name}).json
    assert key is not None
    for _ in range(2):
        assert admin.delete(f"/v1/admin/keys/{key['id']}").status_code == 204
    assert problem(with_key(app, key["key"]).get("/v1/jobs"))[:2] == (401, "unauthenticated")


def test_a_wrong_key_request_is_refused(admin: FlaskClient, tenant: Tenant) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "tenant"),
        ({"tenant": tenant.name, "scopes": []}, "scopes"),
        ({"tenant": tenant.name, "scopes": ["root"]}, "scopes.0"),
        ({"tenant": tenant.name, "name": ""}, "name"),
        ({"tenant": tenant.name, "expires_at": 1700000000}, "expires_at"),
        ({"tenant": tenant.name, "expires_at": "2030-01-01T00:00:00"}, "expires_at"),
    ]
    for body, loc in wrong:
        assert problem(admin.post("/v1/admin/keys", json=body)) == (422, "invalid_request", [loc])
    assert problem(admin.post("/v1/admin/keys", json={"tenant": "nobody"}))[:2] == (404, "not_found")
    assert problem(admin.get("/v1/admin/keys?tenant=nobody"))[:2] == (404, "not_found")
    for key_id in ("1", str(new_id())):
        assert problem(admin.delete(f"/v1/admin/keys/{key_id}"))[:2] == (404, "not_found")
        assert problem(admin.post(f"/v1/admin/keys/{key_id}/rotate"))[:2] == (404, "not_found")


def test_admin_calls_need_the_scope_admin(client: FlaskClient, anonymous: FlaskClient) -> None:
    calls = [
        ("GET", "/v1/admin/tenants"),
        ("POST", "/v1/admin/tenants"),
        ("GET", "/v1/admin/tenants/x"),
        ("PATCH", "/v1/admin/tenants/x"),
        ("GET", "/v1/admin/keys"),
        ("POST", "/v1/admin/keys"),
        ("POST", f"/v1/admin/keys/{new_id()}/rotate"),
        ("DELETE", f"/v1/admin/keys/{new_id()}"),
    ]
    for method, path in calls:
        assert problem(client.open(path, method=method))[:2] == (403, "forbidden")
        assert problem(anonymous.open(path, method=method))[:2] == (401, "unauthenticated")


# --- Authentication ---


def test_every_call_under_v1_needs_a_key(app: Flask, anonymous: FlaskClient) -> None:
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/v1/"):
            path = rule.rule.replace("<", "").replace(">", "")
            for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
                assert problem(anonymous.open(path, method=method))[:2] == (401, "unauthenticated")


def test_only_a_whole_bearer_key_is_taken(app: Flask, anonymous: FlaskClient, tenant: Tenant, engine: Engine) -> None:
    with transaction(engine) as conn:
        _, key = tenants.create_key(conn, tenant)
    wrong = [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {key}",
        key,
        "Bearer cal_unknown",
        f"Bearer {key}x",
        f"Bearer {key[:-1]}",
        "Bearer ü",
    ]
    for header in wrong:
        response = anonymous.get("/v1/jobs", headers={"Authorization": header})
        assert problem(response)[:2] == (401, "unauthenticated"), header
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    assert anonymous.get("/v1/jobs", headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_an_expired_key_is_refused(app: Flask, admin: FlaskClient, tenant: Tenant) -> None:
    key = admin.post("/v1/admin/keys", json={"tenant": tenant.name, "expires_at": "2020-01-01T00:00:00Z"}).json
    assert key is not None
    assert problem(with_key(app, key["key"]).get("/v1/jobs"))[:2] == (401, "unauthenticated")


def test_keys_are_never_logged(
    app: Flask, admin: FlaskClient, tenant: Tenant, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = admin.post("/v1/admin/keys", json={"tenant": tenant.name}).json
    assert key is not None
    client = with_key(app, key["key"])
    client.get("/v1/jobs")
    client.get(f"/v1/jobs?key={key['key']}")
    records = "".join(
        f"{record.getMessage()}{vars(record)}" for record in caplog.records if record.name.startswith("api")
    )
    assert "'path': '/v1/jobs'" in records
    assert tenant.name in records
    assert key["key"] not in records


# --- The fleet ---


def test_queues_tell_how_much_waits(
    client: FlaskClient, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    make_job()
    make_worker(queues=("diffusion.generate", "diffusion.train"))
    page = client.get("/v1/queues").json
    assert page is not None
    assert [one["name"] for one in page["data"]] == sorted(SERVED_QUEUES)
    found = {one["name"]: one for one in page["data"]}
    assert found["diffusion.generate"]["depth"] == 1
    assert found["diffusion.generate"]["workers"] == 1
    assert found["diffusion.benchmark"]["workers"] == 0


def test_workers_are_listed_without_other_tenants_models(
    client: FlaskClient,
    tenant: Tenant,
    engine: Engine,
    make_tenant: Callable[..., Tenant],
    make_model: Callable[..., Any],
    make_worker: Callable[..., UUID],
) -> None:
    stranger = make_tenant().id
    shared, mine = make_model("for-all"), make_model("mine", tenant_id=tenant.id)
    foreign = [make_model(name, tenant_id=stranger) for name in ("secret", "mine")]
    worker = make_worker(name="gpu-0")
    with transaction(engine) as conn:
        workers.seen(conn, worker, WorkerState.BUSY, [model.key for model in (shared, *foreign, mine)])
    page = client.get("/v1/workers").json
    assert page is not None
    assert [(one["name"], one["state"], one["loaded_models"]) for one in page["data"]] == [
        ("gpu-0", "busy", ["for-all@1", "mine@1"])
    ]
