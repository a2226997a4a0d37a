"""GANs in the registry over HTTP: the folder says what it is, and a licence is accepted before use."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from sqlalchemy import Engine

from calotype import tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.tenants import Tenant

NVIDIA = "nvidia-source-code-licence"
DESCRIPTION: dict[str, Any] = {
    "architecture": "stylegan3-t",
    "generator": {"resolution": 64, "image_channels": 3, "num_layers": 14, "num_classes": 2},
    "labels": ["red", "blue"],
    "licence": None,
}
RESTRICTED = {**DESCRIPTION, "licence": {"id": NVIDIA, "commercial_use": False, "note": "research only"}}
Put = Callable[..., dict[str, Any]]


@pytest.fixture
def put(store: ObjectStore, tenant: Tenant) -> Put:
    """``put(description, **changes)``: a folder in the store; gives the body that registers it."""

    def make(description: dict[str, Any] | bytes | None, weights: bool = True, **changes: Any) -> dict[str, Any]:
        prefix = f"tenants/{tenant.id}/imports/g/"
        if description is not None:
            data = description if isinstance(description, bytes) else json.dumps(description).encode()
            store.put_bytes(f"{prefix}model.json", data)
        store.put_bytes(f"{prefix}{'generator' if weights else 'other'}.safetensors", b"weights")
        given = {
            "name": "mine",
            "family": "gan",
            "architecture": "stylegan3-t",
            "licence": "proprietary",
            "source": {"type": "s3", "prefix": prefix},
            **changes,
        }
        return {name: value for name, value in given.items() if value is not None}

    return make


def refused(client: FlaskClient, body: dict[str, Any]) -> tuple[str, str]:
    """Where the one mistake is, and what it is."""
    response = client.post("/v1/models", json=body)
    assert response.status_code == 422, response.text
    assert response.json is not None
    (error,) = response.json["errors"]
    return ".".join(map(str, error["loc"])), error["msg"]


def test_a_gan_says_of_itself_what_it_can_do(client: FlaskClient, put: Put) -> None:
    response = client.post("/v1/models", json=put(DESCRIPTION, default_truncation_psi=0.7))
    assert response.status_code == 201, response.text
    made = response.json
    assert made is not None
    assert (made["ref"], made["family"], made["architecture"]) == ("mine@1", "gan", "stylegan3-t")
    assert made["parameters"] == {
        "default_width": 64, "default_height": 64, "min_size": 64, "max_size": 64, "size_multiple": 64,
        "resolution": 64, "labels": ["red", "blue"], "style_layers": 16, "default_truncation_psi": 0.7,
    }  # fmt: skip
    assert "accepted_licence" not in made["source"]
    job = client.post("/v1/jobs", json={"kind": "generate", "family": "gan", "model": "mine", "input": {}})
    assert job.status_code == 202
    assert job.json is not None
    assert job.json["spec"]["input"]["truncation_psi"] == 0.7


def test_a_wrong_label_is_refused_with_those_there_are(client: FlaskClient, put: Put) -> None:
    client.post("/v1/models", json=put(DESCRIPTION))
    body = {"kind": "generate", "family": "gan", "model": "mine", "input": {"label": "green"}}
    response = client.post("/v1/jobs", json=body)
    assert response.status_code == 422
    assert response.json is not None
    (error,) = response.json["errors"]
    assert (error["loc"], error["msg"]) == (["input", "label"], "mine@1 has no label 'green'; it has: red, blue")


def test_weights_without_commercial_use_are_registered_only_when_their_licence_is_accepted(
    client: FlaskClient, put: Put, engine: Engine
) -> None:
    body = put(RESTRICTED, licence=NVIDIA)
    loc, message = refused(client, body)
    assert loc == "accept_licence"
    assert f"under {NVIDIA}, which allows no commercial use, and it was not accepted" in message
    loc, message = refused(client, {**body, "accept_licence": "yes"})
    assert (loc, "'yes' is another one" in message) == ("accept_licence", True)
    with transaction(engine) as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(tables.model_versions)).scalar_one() == 0

    response = client.post("/v1/models", json={**body, "accept_licence": NVIDIA})
    assert response.status_code == 201, response.text
    assert response.json is not None
    accepted = response.json["source"]["accepted_licence"]
    assert accepted["id"] == response.json["licence"] == NVIDIA
    assert datetime.now(UTC) - datetime.fromisoformat(accepted["at"]) < timedelta(minutes=10)
    with transaction(engine) as conn:
        keys = conn.execute(sa.select(tables.api_keys.c.id)).scalars()
        assert accepted["key_id"] in [str(key) for key in keys]


def test_weights_keep_the_licence_that_their_folder_names(client: FlaskClient, put: Put) -> None:
    loc, message = refused(client, put(RESTRICTED, licence="MIT", accept_licence="MIT"))
    assert (loc, message) == ("licence", f"the folder's model.json says {NVIDIA}; weights keep their licence")


def test_nothing_is_accepted_where_nothing_has_to_be(client: FlaskClient, put: Put) -> None:
    loc, message = refused(client, put(DESCRIPTION, accept_licence="proprietary"))
    assert (loc, "nothing has to be accepted" in message) == ("accept_licence", True)


@pytest.mark.parametrize(
    ("description", "loc", "message"),
    [
        (None, "source.prefix", "holds no model.json"),
        (b"{", "source.prefix", "describes no GAN"),
        ({**DESCRIPTION, "labels": ["red"]}, "source.prefix", "names 1 labels for a generator of 2 classes"),
        ({**DESCRIPTION, "architecture": "stylegan3-r"}, "architecture", "says stylegan3-r, not stylegan3-t"),
        (b" " * (1 << 20) + b"{}", "source.prefix", "more than 1,048,576 bytes"),
    ],
    ids=["none", "no JSON", "labels", "architecture", "size"],
)
def test_a_folder_that_is_no_gan_is_refused_with_the_reason(
    client: FlaskClient, put: Put, description: dict[str, Any] | bytes | None, loc: str, message: str
) -> None:
    where, said = refused(client, put(description))
    assert where == loc
    assert message in said


def test_a_folder_without_its_generator_is_refused(client: FlaskClient, put: Put) -> None:
    where, said = refused(client, put(DESCRIPTION, weights=False))
    assert (where, "holds no generator.safetensors" in said) == ("source.prefix", True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "sd3"}, "a GAN has the architecture stylegan3-t, stylegan3-r, r3gan, not sd3"),
        ({"base": "other"}, "parameters and base are not for GANs"),
        ({"source": {"type": "hub", "repo": "a/b", "revision": "0" * 40}}, "give a source of type upload or s3"),
        ({"architecture": "r3gan", "default_truncation_psi": 0.5}, "r3gan has no truncation"),
        ({"family": "diffusion", "architecture": "lora", "base": "x", "accept_licence": "MIT"}, "are for GANs only"),
    ],
)
def test_what_has_no_meaning_for_the_family_is_refused(
    client: FlaskClient, put: Put, changes: dict[str, Any], message: str
) -> None:
    _, said = refused(client, put(DESCRIPTION, **changes))
    assert message in said
