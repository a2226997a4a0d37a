"""Why a job waits, and what one would cost, over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from api_helpers import generate, problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from api.app import create_app
from calotype import queue, tables, tenants
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.doorbell import Doorbell
from calotype.jobs import Job
from calotype.settings import Settings
from calotype.tenants import Scope, Tenant

pytestmark = pytest.mark.usefixtures("small_model")

DRY_RUN = "/v1/jobs?dry_run=true"


@pytest.fixture
def idle_worker(make_idle: Callable[..., UUID]) -> UUID:
    return make_idle()


@pytest.fixture
def finished(engine: Engine, idle_worker: UUID) -> Callable[[], Job]:
    """Claims the next job and ends it well."""

    def finish() -> Job:
        with transaction(engine) as conn:
            job = queue.claim(conn, idle_worker, ["diffusion.generate"], 60.0)
            assert job is not None
            return queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"images": 1}))

    return finish


def rows(engine: Engine) -> dict[str, int]:
    """How many rows every table has."""
    with transaction(engine) as conn:
        counts = (
            (table.name, sa.select(sa.func.count()).select_from(table)) for table in tables.metadata.sorted_tables
        )
        return {name: conn.execute(count).scalar_one() for name, count in counts}


# --- Explain ---


def test_a_waiting_job_is_explained_under_the_url_that_it_names(client: FlaskClient, idle_worker: UUID) -> None:
    first = client.post("/v1/jobs", json=generate()).get_json()
    second = client.post("/v1/jobs", json=generate()).get_json()
    assert second["urls"]["explain"] == f"/v1/jobs/{second['id']}/explain"

    answer = client.get(second["urls"]["explain"])
    found = answer.get_json()

    assert answer.status_code == 200
    assert (found["job_id"], found["state"], found["position"]) == (second["id"], "queued", 2)
    assert found["ahead"] == {"own": 1, "others": 0, "more": False}
    assert [reason["code"] for reason in found["reasons"]] == ["behind"]
    assert found["estimated_start"]["earliest"] <= found["estimated_start"]["latest"]
    assert client.get(first["urls"]["explain"]).get_json()["position"] == 1


def test_an_ended_job_has_no_position_and_no_start(client: FlaskClient, finished: Callable[[], Job]) -> None:
    job = client.post("/v1/jobs", json=generate()).get_json()
    finished()

    found = client.get(job["urls"]["explain"]).get_json()

    assert (found["state"], found["position"], found["ahead"], found["estimated_start"]) == (
        "succeeded",
        None,
        None,
        None,
    )
    assert [reason["code"] for reason in found["reasons"]] == ["ended"]


def test_a_job_of_another_tenant_cannot_be_explained(client: FlaskClient, stranger: FlaskClient) -> None:
    job = client.post("/v1/jobs", json=generate()).get_json()

    for path in (job["urls"]["explain"], f"/v1/jobs/{uuid4()}/explain", "/v1/jobs/none/explain"):
        assert problem(stranger.get(path))[:2] == (404, "not_found")


def test_what_others_have_waiting_is_told_as_a_number_and_nothing_else(
    client: FlaskClient, stranger: FlaskClient, idle_worker: UUID
) -> None:
    secret = "a very secret prompt"
    hidden = [stranger.post("/v1/jobs", json=generate(input={"prompt": secret})).get_json()["id"] for _ in range(3)]
    job = client.post("/v1/jobs", json=generate()).get_json()

    answer = client.get(job["urls"]["explain"])

    assert answer.get_json()["ahead"]["others"] in range(4)
    assert secret not in answer.text and "strangers" not in answer.text
    assert not any(job_id in answer.text for job_id in hidden)


# --- Quotes ---


def test_a_dry_run_quotes_wait_and_device_time(client: FlaskClient, idle_worker: UUID) -> None:
    answer = client.post(DRY_RUN, json=generate(input={"num_images": 4}))
    quote = answer.get_json()

    assert answer.status_code == 200
    assert (quote["dry_run"], quote["answered"], quote["position"]) == (True, "run", 1)
    assert quote["model"] == "small-model@1"
    assert quote["spec"]["input"]["num_images"] == 4 and quote["spec"]["input"]["steps"] == 20
    assert quote["wait_seconds"]["least"] == 0.0
    assert 0.0 < quote["gpu_seconds"]["least"] < quote["gpu_seconds"]["most"]
    assert (quote["usd"], quote["gpu_hour_usd"]) == (None, None)


def test_a_dry_run_creates_nothing_and_rings_nobody(
    client: FlaskClient, engine: Engine, idle_worker: UUID, monkeypatch: pytest.MonkeyPatch, finished: Callable[[], Job]
) -> None:
    same = generate(input={"seed": 7})
    client.post("/v1/jobs", json=same)
    finished()
    client.post("/v1/jobs", json=generate(input={"seed": 8}))
    heard: list[Any] = []
    monkeypatch.setattr(Doorbell, "ring", lambda self, *about: heard.append(about))
    monkeypatch.setattr(Doorbell, "announce", lambda self, *about: heard.append(about))
    before = rows(engine)

    answers = [
        client.post(DRY_RUN, json=body, headers={"Idempotency-Key": "dry"})
        # A new job, one that is there, one on its way, a wrong one.
        for body in (generate(), same, generate(input={"seed": 8}), generate(priority=11))
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 200, 422]
    assert [answer.get_json().get("answered") for answer in answers] == ["run", "cache", "equal_job", None]
    assert rows(engine) == before
    assert heard == []
    # The key is free.
    assert client.post("/v1/jobs", json=generate(), headers={"Idempotency-Key": "dry"}).status_code == 202


def test_what_the_cache_would_answer_costs_and_waits_nothing(client: FlaskClient, finished: Callable[[], Job]) -> None:
    same = generate(input={"seed": 7})
    client.post("/v1/jobs", json=same)
    finished()

    quote = client.post(DRY_RUN, json=same).get_json()

    assert quote["answered"] == "cache"
    assert quote["gpu_seconds"] == quote["wait_seconds"] == {"least": 0.0, "most": 0.0}
    assert client.post(DRY_RUN, json={**same, "cache": "bypass"}).get_json()["answered"] == "run"


def test_a_dry_run_refuses_what_a_submission_refuses(
    client: FlaskClient, make_client: Callable[..., FlaskClient], make_tenant: Callable[..., Tenant]
) -> None:
    full = make_client(make_tenant(max_queued=0))

    for body in (generate(input={"width": 60}), generate(model="no-such-model"), {"kind": "generate"}):
        assert problem(client.post(DRY_RUN, json=body)) == problem(client.post("/v1/jobs", json=body))
    assert problem(full.post(DRY_RUN, json=generate()))[:2] == (429, "limit_exceeded")
    assert problem(client.post("/v1/jobs?dry_run=1", json=generate())) == (422, "invalid_request", ["query.dry_run"])


def test_dry_run_false_submits(client: FlaskClient) -> None:
    assert client.post("/v1/jobs?dry_run=false", json=generate()).status_code == 202


def test_where_no_worker_serves_the_queue_the_quote_has_no_wait_but_the_reason(client: FlaskClient) -> None:
    quote = client.post(DRY_RUN, json=generate()).get_json()

    assert quote["wait_seconds"] is None
    assert [reason["code"] for reason in quote["reasons"]] == ["no_worker"]


@pytest.fixture
def priced(settings: Settings, engine: Engine, store: ObjectStore) -> Iterator[Flask]:
    from dataclasses import replace

    with_price = replace(settings, gpu_hour_usd=3.6)
    doorbell = Doorbell(with_price)
    yield create_app(with_price, engine=engine, store=store, doorbell=doorbell)
    doorbell.close()


def test_with_the_operators_price_a_quote_names_money(priced: Flask, engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        _, key = tenants.create_key(conn, tenant, scopes=[Scope.JOBS_WRITE])
    client = priced.test_client()
    quote = client.post(DRY_RUN, json=generate(), headers={"Authorization": f"Bearer {key}"}).get_json()

    assert quote["gpu_hour_usd"] == 3.6
    assert quote["usd"]["least"] == pytest.approx(quote["gpu_seconds"]["least"] / 1000)
    assert quote["usd"]["most"] == pytest.approx(quote["gpu_seconds"]["most"] / 1000)
