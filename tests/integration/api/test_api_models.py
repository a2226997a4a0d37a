"""The registry over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from api_helpers import generate, problem
from flask.testing import FlaskClient
from sqlalchemy import Engine

from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.tenants import Scope, Tenant

PARAMETERS = {
    "default_width": 64,
    "default_height": 64,
    "size_multiple": 8,
    "min_size": 32,
    "max_size": 128,
    "default_steps": 20,
    "max_steps": 100,
    "default_guidance_scale": 3.5,
    "max_text_tokens": 16,
}
REVISION = "b940f670f0eda2d07fbb75229e779da1ad11eb80"


def model(source: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    given = {
        "name": "mine",
        "family": "diffusion",
        "architecture": "sd3",
        "licence": "Apache-2.0",
        "parameters": PARAMETERS,
        "source": source or {"type": "hub", "repo": "owner/name", "revision": REVISION},
        **values,
    }
    return {name: value for name, value in given.items() if value is not None}


def versions(engine: Engine) -> int:
    with transaction(engine) as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(tables.model_versions)).scalar_one())


def test_files_in_the_store_become_a_version(client: FlaskClient, store: ObjectStore, tenant: Tenant) -> None:
    prefix = f"tenants/{tenant.id}/imports/mine/"
    store.put_bytes(f"{prefix}transformer/weights.safetensors", b"weights")
    store.put_bytes(f"{prefix}model_index.json", b"{}")
    response = client.post("/v1/models", json=model({"type": "s3", "prefix": prefix}))
    assert response.status_code == 201
    made = response.json
    assert made is not None
    assert (made["ref"], made["bytes"], made["shared"], made["versions"]) == ("mine@1", 9, False, [1])
    assert [file["path"] for file in made["files"]] == ["model_index.json", "transformer/weights.safetensors"]
    assert client.get(response.headers["Location"]).json == made
    assert client.post("/v1/jobs", json=generate(model="mine")).status_code == 202


def test_a_hub_model_is_pinned_to_a_revision(client: FlaskClient) -> None:
    made = client.post("/v1/models", json=model()).json
    assert made is not None
    assert made["source"] == {"type": "hub", "repo": "owner/name", "revision": REVISION}
    assert made["files"] == []
    again = client.post("/v1/models", json=model()).json
    assert again is not None
    assert (again["ref"], again["versions"]) == ("mine@2", [2, 1])


def test_an_adapter_is_pinned_to_its_base(client: FlaskClient, make_model: Callable[..., Any]) -> None:
    make_model("small-model")
    lora = model(name="lora", architecture="lora", base="small-model", parameters=None)
    made = client.post("/v1/models", json=lora).json
    assert made is not None
    assert made["base"] == "small-model@1"
    on_adapter = {**lora, "name": "second", "base": "lora"}
    assert problem(client.post("/v1/models", json=on_adapter)) == (422, "invalid_request", ["base"])
    on_nothing = {**lora, "name": "second", "base": "nothing"}
    assert problem(client.post("/v1/models", json=on_nothing)) == (422, "unknown_model", ["base"])


def test_a_wrong_model_is_refused_and_leaves_nothing(
    client: FlaskClient, engine: Engine, store: ObjectStore, tenant: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    own, theirs = f"tenants/{tenant.id}/", f"tenants/{make_tenant().id}/"
    for key in (
        f"{own}imports/pickled/weights.safetensors",
        f"{own}imports/pickled/weights.bin",
        f"{own}imports/light/model_index.json",
        f"{own}jobs/x/weights.safetensors",
        f"{theirs}imports/secret/weights.safetensors",
    ):
        store.put_bytes(key, b"x")
    prefixes = [
        "imports/",
        f"{own}imports/nothing/",
        f"{own}imports/pickled/",
        f"{own}imports/light/",
        f"{own}imports/pickled",
        f"{own}jobs/x/",
        f"{theirs}imports/secret/",
        f"{own}imports/../../{theirs}imports/secret/",
    ]
    for prefix in prefixes:
        response = client.post("/v1/models", json=model({"type": "s3", "prefix": prefix}))
        assert problem(response) == (422, "invalid_request", ["source.prefix"])
    hub = {"type": "hub", "repo": "owner/name"}
    wrong: list[tuple[dict[str, Any], str]] = [
        (model({**hub, "revision": "main"}), "source.hub.revision"),
        (model({**hub, "repo": "../etc", "revision": REVISION}), "source.hub.repo"),
        (model(hub), "source.hub.revision"),
        (model({"type": "ftp"}), "source"),
        (model(name="No Name"), "name"),
        (model(family="hybrid"), "family"),
        (model(licence=None), "licence"),
        (model(parameters=None), ""),
        (model(base="small-model"), ""),
        (model(parameters={**PARAMETERS, "default_width": 60}), "parameters"),
        (model(parameters={**PARAMETERS, "colour": 1}), "parameters.colour"),
    ]
    for body, loc in wrong:
        assert problem(client.post("/v1/models", json=body)) == (422, "invalid_request", [loc])
    assert versions(engine) == 0


def test_a_list_holds_each_model_once_in_its_latest_version(
    client: FlaskClient, stranger: FlaskClient, tenant: Tenant, make_model: Callable[..., Any]
) -> None:
    for name, owner in (("mine", tenant.id), ("mine", tenant.id), ("for-all", None), ("mine-too", tenant.id)):
        make_model(name, tenant_id=owner)
    first = client.get("/v1/models?limit=2").json
    assert first is not None
    rest = client.get(f"/v1/models?limit=2&cursor={first['next_cursor']}").json
    assert rest is not None
    assert [one["ref"] for one in first["data"] + rest["data"]] == ["for-all@1", "mine@2", "mine-too@1"]
    assert first["data"][1]["versions"] == [2, 1]
    theirs = stranger.get("/v1/models").json
    assert theirs is not None
    assert [one["name"] for one in theirs["data"]] == ["for-all"]
    assert client.get("/v1/models?family=gan").json == {
        "object": "list",
        "data": [],
        "has_more": False,
        "next_cursor": None,
    }


def test_one_version_or_the_latest_is_shown(
    client: FlaskClient, tenant: Tenant, make_model: Callable[..., Any]
) -> None:
    for _ in range(2):
        make_model("mine", tenant_id=tenant.id)
    refs = [client.get(f"/v1/models/{name}").json for name in ("mine", "mine@1")]
    assert [one["ref"] for one in refs if one] == ["mine@2", "mine@1"]
    for name in ("mine@3", "other", "mine@x", "Mine", "%00", "x" * 300):
        assert problem(client.get(f"/v1/models/{name}"))[:2] == (404, "not_found")


def test_a_model_is_deleted_with_its_objects_unless_a_job_needs_it(
    client: FlaskClient, store: ObjectStore, tenant: Tenant
) -> None:
    prefix = f"tenants/{tenant.id}/imports/mine/"
    store.put_bytes(f"{prefix}weights.safetensors", b"weights")
    client.post("/v1/models", json=model({"type": "s3", "prefix": prefix}))
    job = client.post("/v1/jobs", json=generate(model="mine")).json
    assert job is not None
    assert problem(client.delete("/v1/models/mine"))[:2] == (409, "conflict")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete("/v1/models/mine").status_code == 204
    assert problem(client.get("/v1/models/mine"))[0] == 404
    assert list(store.list_keys("")) == []


def test_a_model_of_another_tenant_or_of_all_is_not_ones_own(
    client: FlaskClient, stranger: FlaskClient, tenant: Tenant, make_model: Callable[..., Any]
) -> None:
    make_model("mine", tenant_id=tenant.id)
    make_model("for-all")
    assert problem(stranger.get("/v1/models/mine"))[0] == 404
    assert problem(stranger.delete("/v1/models/mine"))[0] == 404
    assert problem(stranger.delete("/v1/models/for-all"))[0] == 404
    assert problem(client.post("/v1/models", json=model(name="for-all")))[:2] == (409, "conflict")
    assert stranger.post("/v1/models", json=model(name="mine")).status_code == 201


def test_each_call_needs_its_scope(make_client: Callable[..., FlaskClient], tenant: Tenant) -> None:
    reader, writer = make_client(tenant, Scope.JOBS_READ), make_client(tenant, Scope.JOBS_WRITE)
    assert problem(reader.post("/v1/models", json=model()))[:2] == (403, "forbidden")
    assert problem(reader.delete("/v1/models/mine"))[:2] == (403, "forbidden")
    assert problem(writer.get("/v1/models"))[:2] == (403, "forbidden")
