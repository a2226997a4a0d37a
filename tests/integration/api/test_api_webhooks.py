"""Webhooks over HTTP: submitted, refused, looked at, replayed; the secret is shown where it is asked for only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from api_helpers import generate, problem
from flask.testing import FlaskClient
from sqlalchemy import Engine

from calotype import tables
from calotype.database import transaction
from calotype.ids import new_id
from calotype.log import JsonFormatter
from calotype.tenants import Scope, Tenant
from calotype.webhooks.signing import new_secret

pytestmark = pytest.mark.usefixtures("small_model")

URL = "https://hooks.example.com/calotype?team=7"
SECRET = new_secret()


@pytest.fixture
def ended(client: FlaskClient) -> dict[str, Any]:
    """A job with a webhook that was canceled."""
    response = client.post("/v1/jobs", json=generate(webhook={"url": URL, "secret": SECRET}))
    assert response.json is not None
    canceled = client.post(f"/v1/jobs/{response.json['id']}/cancel").json
    assert canceled is not None
    return canceled


def only(response: Any) -> dict[str, Any]:
    (found,) = response.json["data"]
    return dict(found)


# --- Submitting ---


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://10.0.0.1:8443/x",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://100.64.0.1/",
        "https://224.0.0.1/",
        "https://localhost/",
        "http://hooks.example.com/",
        "https://u:p@hooks.example.com/",
        "https://2130706433/",
        "ftp://hooks.example.com/",
        "https://hooks.example.com/" + "a" * 2048,
    ],
)
def test_a_webhook_that_must_not_be_sent_is_refused_by_its_field_and_nothing_is_written(
    client: FlaskClient, engine: Engine, url: str
) -> None:
    response = client.post("/v1/jobs", json=generate(webhook={"url": url}), headers={"Idempotency-Key": "k"})
    assert problem(response) == (422, "invalid_request", ["webhook.url"])
    with transaction(engine) as conn:
        for table in (tables.jobs, tables.idempotency_keys):
            assert conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0


@pytest.mark.parametrize("secret", ["whsec_short", "x" * 40, SECRET + "A", SECRET[6:], 7, ""])
def test_a_wrong_secret_is_refused_by_its_field_and_not_repeated(client: FlaskClient, secret: Any) -> None:
    response = client.post("/v1/jobs", json=generate(webhook={"url": URL, "secret": secret}))
    assert problem(response) == (422, "invalid_request", ["webhook.secret"])
    assert not isinstance(secret, str) or len(secret) < 20 or secret not in response.text


def test_the_secret_of_a_webhook_is_in_no_answer_spec_or_log(
    client: FlaskClient, engine: Engine, ended: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert ended["spec"]["webhook"] == {"url": URL}
    job, delivery = f"/v1/jobs/{ended['id']}", only(client.get("/v1/webhooks/deliveries"))
    texts = [
        client.get(path).text
        for path in (job, "/v1/jobs", f"{job}/events", f"/v1/webhooks/deliveries/{delivery['id']}")
    ]
    texts += [client.post(f"{job}/retry").text, client.get("/v1/webhooks/deliveries").text, str(ended), str(delivery)]
    texts += [JsonFormatter().format(record) for record in caplog.records]
    with transaction(engine) as conn:
        specs = conn.execute(sa.select(tables.jobs.c.spec)).scalars().all()
        events = conn.execute(sa.select(tables.events.c.data)).scalars().all()
    assert not [text for text in [*texts, str(specs), str(events)] if SECRET in text or SECRET[6:] in text]


def test_a_key_used_with_another_webhook_or_another_secret_is_another_body(client: FlaskClient) -> None:
    def submit(webhook: dict[str, str] | None) -> int:
        body = generate(input={"seed": 1}, **({"webhook": webhook} if webhook else {}))
        return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).status_code

    assert submit({"url": URL, "secret": SECRET}) == 202
    assert submit({"url": URL, "secret": SECRET}) == 202
    assert submit({"url": URL, "secret": new_secret()}) == 422
    assert submit({"url": f"{URL}&x=1", "secret": SECRET}) == 422
    assert submit({"url": URL}) == 422
    assert submit(None) == 422


# --- Deliveries ---


def test_the_delivery_of_an_ended_job_can_be_looked_at(client: FlaskClient, ended: dict[str, Any]) -> None:
    delivery = only(client.get("/v1/webhooks/deliveries"))
    assert (delivery["job_id"], delivery["type"], delivery["url"]) == (ended["id"], "job.canceled", URL)
    assert (delivery["state"], delivery["attempts"], delivery["tries"]) == ("pending", 0, [])
    shown = client.get(f"/v1/webhooks/deliveries/{delivery['id']}").json
    assert shown is not None
    assert {name: shown[name] for name in delivery} == delivery
    assert shown["body"]["data"]["id"] == ended["id"]
    assert shown["body"]["timestamp"] == ended["finished_at"]


def test_deliveries_are_filtered_and_paged(client: FlaskClient, ended: dict[str, Any]) -> None:
    again = client.post(f"/v1/jobs/{ended['id']}/retry").json
    assert again is not None
    client.post(f"/v1/jobs/{again['id']}/cancel")
    both = client.get("/v1/webhooks/deliveries").json
    assert both is not None and len(both["data"]) == 2
    assert only(client.get(f"/v1/webhooks/deliveries?job={ended['id']}"))["job_id"] == ended["id"]
    assert len(client.get("/v1/webhooks/deliveries?state=pending&state=gone").json["data"]) == 2  # type: ignore[index]
    assert client.get("/v1/webhooks/deliveries?state=failed").json["data"] == []  # type: ignore[index]
    first = client.get("/v1/webhooks/deliveries?limit=1").json
    assert first is not None and first["has_more"]
    second = client.get(f"/v1/webhooks/deliveries?limit=1&cursor={first['next_cursor']}").json
    assert second is not None and [*first["data"], *second["data"]] == both["data"]
    for wrong in ("job=nonsense", "state=lost", "cursor=xyz", "url=x"):
        assert client.get(f"/v1/webhooks/deliveries?{wrong}").status_code == 422


def test_a_replayed_delivery_is_due_at_once(client: FlaskClient, engine: Engine, ended: dict[str, Any]) -> None:
    delivery = only(client.get("/v1/webhooks/deliveries"))
    with transaction(engine) as conn:
        conn.execute(tables.webhook_deliveries.update().values(state="failed", due_at=None, attempts=11))
    path = f"/v1/webhooks/deliveries/{delivery['id']}"
    assert client.get(path).json["state"] == "failed"  # type: ignore[index]
    replayed = client.post(f"{path}/replay")
    assert replayed.status_code == 202 and replayed.json is not None
    assert replayed.json["state"] == "pending" and replayed.json["next_try_at"] is not None


def test_a_delivery_of_another_tenant_does_not_exist(
    client: FlaskClient, stranger: FlaskClient, ended: dict[str, Any]
) -> None:
    path = f"/v1/webhooks/deliveries/{only(client.get('/v1/webhooks/deliveries'))['id']}"
    assert stranger.get("/v1/webhooks/deliveries").json["data"] == []  # type: ignore[index]
    assert stranger.get(f"/v1/webhooks/deliveries?job={ended['id']}").json["data"] == []  # type: ignore[index]
    for answer in (stranger.get(path), stranger.post(f"{path}/replay")):
        assert problem(answer)[:2] == (404, "not_found")
    for unknown in (new_id(), "nonsense"):
        assert client.get(f"/v1/webhooks/deliveries/{unknown}").status_code == 404


def test_a_delivery_outlives_its_job(client: FlaskClient, ended: dict[str, Any]) -> None:
    assert client.delete(f"/v1/jobs/{ended['id']}").status_code == 204
    assert only(client.get("/v1/webhooks/deliveries"))["job_id"] == ended["id"]


# --- The secret ---


def test_a_tenants_secret_stays_until_it_is_rotated(client: FlaskClient, stranger: FlaskClient) -> None:
    first = client.get("/v1/webhooks/secret").json
    assert first is not None and first["secret"].startswith("whsec_") and first["previous_until"] is None
    assert client.get("/v1/webhooks/secret").json == first
    assert stranger.get("/v1/webhooks/secret").json["secret"] != first["secret"]  # type: ignore[index]

    rotated = client.post("/v1/webhooks/secret/rotate").json
    assert rotated is not None
    assert rotated["secret"] != first["secret"] and rotated["previous_until"] is not None
    assert client.get("/v1/webhooks/secret").json == rotated


def test_who_may_only_look_sees_no_secret_and_replays_nothing(
    make_client: Callable[..., FlaskClient], tenant: Tenant, ended: dict[str, Any]
) -> None:
    reader = make_client(tenant, Scope.JOBS_READ)
    delivery = only(reader.get("/v1/webhooks/deliveries"))
    for answer in (
        reader.get("/v1/webhooks/secret"),
        reader.post("/v1/webhooks/secret/rotate"),
        reader.post(f"/v1/webhooks/deliveries/{delivery['id']}/replay"),
    ):
        assert problem(answer)[:2] == (403, "forbidden")
