"""Jobs over HTTP, against the real services."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from api_helpers import generate, problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from api import paging
from api.resources.jobs import JobListQuery
from calotype import queue, tables, tenants
from calotype.artifacts import ObjectStore, job_prefix
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.ids import new_id
from calotype.jobs import Artifact, Job, JobError, Progress
from calotype.settings import Settings
from calotype.tenants import Scope, Tenant
from worker import orphans

pytestmark = pytest.mark.usefixtures("small_model")


def count(engine: Engine, table: sa.Table) -> int:
    with transaction(engine) as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def claim(engine: Engine, worker_id: UUID) -> Job:
    with transaction(engine) as conn:
        job = queue.claim(conn, worker_id, ["diffusion.generate"], 60)
    assert job is not None
    return job


def finish(engine: Engine, store: ObjectStore, job: Job, names: tuple[str, ...] = ("image-0.png",)) -> None:
    """Ends a running job with small artifacts, as a worker would."""
    artifacts = []
    for position, name in enumerate(names):
        key = job_prefix(job.tenant_id, job.id, job.epoch) + name
        store.put_bytes(key, b"pixels")
        artifacts.append(
            Artifact(
                name=name,
                object_key=key,
                content_type="image/png",
                bytes=6,
                sha256="b" * 64,
                position=position,
                width=64,
                height=64,
                seed=42 + position,
            )
        )
    with transaction(engine) as conn:
        queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"images": len(names)}, artifacts=artifacts))


# --- Submitting ---


def test_a_submitted_job_is_accepted_complete_and_rung_for(
    client: FlaskClient, settings: Settings, eventually: Callable[..., object]
) -> None:
    import redis

    response = client.post("/v1/jobs", json=generate(metadata={"campaign": "spring"}, priority=7))
    assert response.status_code == 202
    job = response.json
    assert job is not None
    assert response.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["model"] == "small-model@1"
    assert job["priority"] == 7
    assert job["metadata"] == {"campaign": "spring"}
    assert job["created_at"].endswith("Z")
    assert job["spec"]["input"]["width"] == 64
    assert isinstance(job["spec"]["input"]["seed"], int)
    assert job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    with redis.Redis.from_url(settings.broker_url) as broker:
        eventually(lambda: broker.llen("diffusion.generate") == 1)
    assert client.get(response.headers["Location"]).json == job


#: A request, and the code and the field of its refusal. One test for all: each test makes a database.
WRONG_REQUESTS: list[tuple[Any, str, str]] = [
    (generate(colour="red"), "invalid_request", "colour"),
    (generate(input={"prompt": ""}), "invalid_request", "input.prompt"),
    (generate(input={"num_images": 0}), "invalid_request", "input.num_images"),
    (generate(input={"num_images": "4"}), "invalid_request", "input.num_images"),
    (generate(input={"seed": 2**53}), "invalid_request", "input.seed"),
    (generate(input={"width": 60}), "unsupported_size", "input.width"),
    (generate(input={"height": 4096}), "unsupported_size", "input.height"),
    (generate(input={"prompt": "a\x00b"}), "invalid_request", "input.prompt"),
    (generate(model="no-such-model"), "unknown_model", "model"),
    (generate(model="small-model@2"), "unknown_model", "model"),
    (generate(model="Small Model"), "invalid_request", "model"),
    (generate(family="hybrid"), "family_unavailable", "family"),
    (generate(family="oil"), "invalid_request", "family"),
    (generate(kind="paint"), "invalid_request", "kind"),
    (generate(webhook={"url": "https://10.0.0.1/hook"}), "invalid_request", "webhook.url"),
    (generate(webhook={"url": "ftp://example.org"}), "invalid_request", "webhook.url"),
    (generate(priority=11), "invalid_request", "priority"),
    (generate(deadline_seconds=-1), "invalid_request", "deadline_seconds"),
    (generate(timeout_seconds=0), "invalid_request", "timeout_seconds"),
    (generate(retain_seconds=-1), "invalid_request", "retain_seconds"),
    (generate(cache="perhaps"), "invalid_request", "cache"),
    (
        {"kind": "benchmark", "input": {"contenders": [], "dataset": "x"}},
        "invalid_request",
        "input.contenders",
    ),
    ([], "invalid_request", ""),
    ("text", "invalid_request", ""),
]


def test_a_wrong_request_names_the_field_and_leaves_nothing(
    client: FlaskClient, engine: Engine, store: ObjectStore
) -> None:
    for body, code, loc in WRONG_REQUESTS:
        response = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "once"})
        assert problem(response) == (422, code, [loc])
    assert count(engine, tables.jobs) == 0
    assert count(engine, tables.idempotency_keys) == 0
    assert list(store.list_keys("")) == []


def test_a_size_the_model_cannot_do_is_answered_with_the_nearest(client: FlaskClient) -> None:
    response = client.post("/v1/jobs", json=generate(input={"width": 60}))
    assert response.json is not None
    assert "56 or 64" in response.json["detail"]
    assert response.json["error"]["param"] == "input.width"
    assert response.json["error"]["message"] == response.json["detail"]


def test_a_family_that_does_not_fit_the_model_is_refused(client: FlaskClient, make_model: Callable[..., Any]) -> None:
    make_model("small-gan", family="gan", architecture="stylegan3-t")
    response = client.post("/v1/jobs", json=generate(model="small-gan"))
    assert problem(response) == (422, "invalid_request", ["model"])


def test_a_model_and_a_dataset_of_another_tenant_do_not_exist(
    client: FlaskClient,
    stranger: FlaskClient,
    engine: Engine,
    make_model: Callable[..., Any],
    make_tenant: Callable[..., Tenant],
    upload: Callable[..., Any],
) -> None:
    make_model("secret-model", tenant_id=make_tenant().id)
    assert problem(client.post("/v1/jobs", json=generate(model="secret-model"))) == (422, "unknown_model", ["model"])
    dataset = upload(stranger).json
    train = {
        "kind": "train",
        "family": "diffusion",
        "model": "small-model",
        "input": {"dataset": dataset["id"], "steps": 1, "output_model": "mine"},
    }
    assert problem(client.post("/v1/jobs", json=train)) == (422, "unknown_dataset", ["input.dataset"])
    assert count(engine, tables.jobs) == 0


MALFORMED_BODIES = [
    (b"{", "application/json", 400, "malformed_request"),
    (b"", "application/json", 400, "malformed_request"),
    (b'{"kind": "generate", "kind": "train"}', "application/json", 400, "malformed_request"),
    (b"{}", "text/plain", 415, "unsupported_media_type"),
    (b"a=1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    (b'{"a": "' + b"x" * (1 << 20) + b'"}', "application/json", 413, "too_large"),
]


def test_a_body_that_is_no_json_is_a_problem(client: FlaskClient) -> None:
    for data, content_type, status, code in MALFORMED_BODIES:
        response = client.post("/v1/jobs", data=data, content_type=content_type)
        assert problem(response) == (status, code, [])


# --- Idempotency ---


def test_the_same_key_and_body_give_the_same_job(client: FlaskClient, engine: Engine) -> None:
    headers = {"Idempotency-Key": "order-17"}
    first = client.post("/v1/jobs", json=generate(), headers=headers)
    again = client.post("/v1/jobs", json=generate(), headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json == again.json
    assert count(engine, tables.jobs) == 1


def test_a_tenant_at_its_limit_is_told_when_to_try_again(client: FlaskClient, engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        tenants.change_tenant(conn, tenant.name, max_queued=1)
    assert client.post("/v1/jobs", json=generate()).status_code == 202
    refused = client.post("/v1/jobs", json=generate())
    assert problem(refused)[:2] == (429, "limit_exceeded")
    assert int(refused.headers["Retry-After"]) > 0
    assert count(engine, tables.jobs) == 1


def test_the_same_key_with_another_body_is_refused(client: FlaskClient, engine: Engine) -> None:
    headers = {"Idempotency-Key": "order-17"}
    client.post("/v1/jobs", json=generate(), headers=headers)
    response = client.post("/v1/jobs", json=generate(input={"seed": 1}), headers=headers)
    assert problem(response)[:2] == (422, "idempotency_mismatch")
    assert count(engine, tables.jobs) == 1


def test_the_same_key_of_another_tenant_is_another_key(client: FlaskClient, stranger: FlaskClient) -> None:
    headers = {"Idempotency-Key": "order-17"}
    mine = client.post("/v1/jobs", json=generate(), headers=headers).json
    theirs = stranger.post("/v1/jobs", json=generate(), headers=headers).json
    assert mine is not None and theirs is not None
    assert mine["id"] != theirs["id"]


def test_concurrent_requests_with_one_key_make_one_job(
    app: Flask, make_client: Callable[..., FlaskClient], tenant: Tenant, engine: Engine
) -> None:
    clients = [make_client(tenant) for _ in range(6)]
    start = threading.Barrier(len(clients))

    def submit(client: FlaskClient) -> str:
        start.wait(10)
        response = client.post("/v1/jobs", json=generate(), headers={"Idempotency-Key": "one"})
        assert response.status_code == 202, response.text
        return str(response.json["id"]) if response.json else ""

    with ThreadPoolExecutor(len(clients)) as pool:
        ids = set(pool.map(submit, clients))
    assert len(ids) == 1
    assert count(engine, tables.jobs) == 1


# --- Waiting ---


def test_prefer_wait_answers_with_the_finished_job(
    client: FlaskClient, engine: Engine, store: ObjectStore, make_worker: Callable[..., UUID]
) -> None:
    worker = make_worker()

    def work() -> None:
        while count(engine, tables.jobs) == 0:
            pass
        finish(engine, store, claim(engine, worker))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        response = client.post("/v1/jobs", json=generate(), headers={"Prefer": "wait=20"})
        done.result(20)
    assert response.status_code == 200
    assert response.headers["Preference-Applied"] == "wait=20"
    assert response.json is not None
    assert response.json["state"] == "succeeded"
    assert response.json["artifacts"][0]["name"] == "image-0.png"


def test_prefer_wait_answers_202_when_the_job_goes_on(client: FlaskClient) -> None:
    response = client.post("/v1/jobs", json=generate(), headers={"Prefer": "respond-async, wait=1"})
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "wait=1"


def test_an_impossible_wait_makes_no_job(client: FlaskClient, engine: Engine) -> None:
    response = client.post("/v1/jobs", json=generate(), headers={"Prefer": "wait=61"})
    assert problem(response) == (422, "invalid_request", ["header.Prefer"])
    assert count(engine, tables.jobs) == 0


def test_a_long_poll_ends_with_the_next_change(
    client: FlaskClient, engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    job, worker = make_job(), make_worker()
    # With the ETag no change is missed, even one from before the poll reaches the server.
    known = {"If-None-Match": client.get(f"/v1/jobs/{job.id}").headers["ETag"]}
    with ThreadPoolExecutor(1) as pool:
        polled = pool.submit(client.get, f"/v1/jobs/{job.id}?wait=20", headers=known)
        held = claim(engine, worker)
        response = polled.result(20)
    assert response.json is not None
    assert response.json["state"] == "running"
    with transaction(engine) as conn:
        queue.progress(conn, held.id, held.epoch, Progress(fraction=0.5, step=1, total=2, stage="denoising"))
    seen = client.get(f"/v1/jobs/{job.id}?wait=20", headers={"If-None-Match": response.headers["ETag"]})
    assert seen.json is not None
    assert seen.json["progress"] == {
        "fraction": 0.5,
        "step": 1,
        "total": 2,
        "stage": "denoising",
        "eta_seconds": None,
    }


def test_a_poll_without_a_change_ends_in_time(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    job = make_job()
    first = client.get(f"/v1/jobs/{job.id}?wait=0.1")
    assert first.status_code == 200
    again = client.get(f"/v1/jobs/{job.id}?wait=0.1", headers={"If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
    assert again.data == b""


def test_a_job_that_has_ended_is_answered_at_once(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    job = make_job()
    canceled = client.post(f"/v1/jobs/{job.id}/cancel")
    polled = client.get(f"/v1/jobs/{job.id}?wait=60", headers={"If-None-Match": canceled.headers["ETag"]})
    assert polled.status_code == 200
    assert polled.json == canceled.json


def test_long_polls_hold_no_database_connection(
    settings: Settings, store: ObjectStore, engine: Engine, client: FlaskClient, make_job: Callable[..., Job]
) -> None:
    job = make_job()
    with ThreadPoolExecutor(12) as pool:
        # More than the pool has connections.
        polls = [pool.submit(client.get, f"/v1/jobs/{job.id}?wait=2") for _ in range(settings.database_pool + 2)]
        assert client.post("/v1/jobs", json=generate()).status_code == 202
        assert {poll.result(30).status_code for poll in polls} == {200}


def test_a_stopping_server_ends_its_long_polls(app: Flask, client: FlaskClient, make_job: Callable[..., Job]) -> None:
    app.extensions["calotype"].stopping.set()
    assert client.get(f"/v1/jobs/{make_job().id}?wait=60").status_code == 200


def test_an_impossible_long_poll_is_refused(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    job = make_job()
    for wait in ("61", "-1", "soon", "", "1e1", "inf", "nan"):
        response = client.get(f"/v1/jobs/{job.id}?wait={wait}")
        assert problem(response) == (422, "invalid_request", ["query.wait"]), wait


# --- Looking ---


def test_a_finished_job_shows_artifacts_that_can_be_fetched(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    import httpx

    job = make_job()
    finish(engine, store, claim(engine, make_worker()), ("image-0.png", "image-1.png"))
    body = client.get(f"/v1/jobs/{job.id}").json
    assert body is not None
    assert body["result"] == {"images": 2}
    assert [artifact["seed"] for artifact in body["artifacts"]] == [42, 43]
    artifact = body["artifacts"][0]
    fetched = httpx.get(artifact["url"], trust_env=False)
    assert fetched.content == b"pixels"
    assert fetched.headers["Content-Type"] == "image/png"
    listed = client.get("/v1/jobs").json
    assert listed is not None
    assert [one["name"] for one in listed["data"][0]["artifacts"]] == ["image-0.png", "image-1.png"]


def test_an_artifact_can_be_streamed_through_the_api(
    client: FlaskClient,
    stranger: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    job = make_job()
    finish(engine, store, claim(engine, make_worker()))
    path = f"/v1/jobs/{job.id}/artifacts/image-0.png"
    response = client.get(path)
    assert response.data == b"pixels"
    assert response.content_type == "image/png"
    assert response.content_length == 6
    assert response.headers["Content-Disposition"] == "attachment; filename=image-0.png"
    assert stranger.get(path).status_code == 404
    assert client.get(f"/v1/jobs/{job.id}/artifacts/other.png").status_code == 404


def test_an_artifact_whose_object_is_gone_is_not_found(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    job = make_job()
    finish(engine, store, claim(engine, make_worker()))
    store.delete([one.key for one in store.list_keys("")])
    assert client.get(f"/v1/jobs/{job.id}/artifacts/image-0.png").status_code == 404


def test_a_failed_job_says_why(
    client: FlaskClient, engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    job = make_job()
    held = claim(engine, make_worker())
    error = JobError(code="out_of_memory", title="Out of memory", detail="Use a smaller size.", retryable=False)
    with transaction(engine) as conn:
        queue.fail(conn, held.id, held.epoch, error)
    body = client.get(f"/v1/jobs/{job.id}").json
    assert body is not None
    assert (body["state"], body["error"]) == ("failed", error.as_dict())


# --- Listing ---


def test_pages_hold_every_job_once_while_others_are_submitted(
    client: FlaskClient, make_job: Callable[..., Job]
) -> None:
    jobs = [make_job() for _ in range(7)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = client.get(f"/v1/jobs?limit=3{cursor}").json
        assert page is not None
        seen += [job["id"] for job in page["data"]]
        # One that comes meanwhile is newer than the page and shifts nothing.
        make_job()
        if not page["has_more"]:
            assert page["next_cursor"] is None
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [str(job.id) for job in reversed(jobs)]


def test_filters_narrow_a_list(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    kept = make_job(model="small-model@2")
    other = make_job(model="small-model@1")
    client.post(f"/v1/jobs/{other.id}/cancel")

    def ids(query: str) -> list[str]:
        page = client.get(f"/v1/jobs?{query}").json
        assert page is not None
        return [job["id"] for job in page["data"]]

    both = [str(other.id), str(kept.id)]
    assert ids("state=queued") == [str(kept.id)]
    assert ids("state=queued&state=canceled") == both
    assert ids("model=small-model") == both
    assert ids("model=small-model@2") == [str(kept.id)]
    assert ids("kind=generate&family=diffusion") == both
    assert ids("kind=train") == []
    assert ids("since=2020-01-01T00:00:00Z") == both
    assert ids("since=2120-01-01T00:00:00%2B02:00") == []


WRONG_LISTS = [
    ("limit=0", "query.limit"),
    ("limit=101", "query.limit"),
    ("limit=ten", "query.limit"),
    ("limit=1&limit=2", "query.limit"),
    ("state=asleep", "query.state.0"),
    ("kind=paint", "query.kind"),
    ("since=yesterday", "query.since"),
    ("cursor=x", "query.cursor"),
    ("cursor=WyJub3QgYW4gaWQiLCJ4Il0", "query.cursor"),
    ("colour=red", "query.colour"),
]


def test_a_wrong_list_parameter_is_refused(client: FlaskClient) -> None:
    for query, loc in WRONG_LISTS:
        assert problem(client.get(f"/v1/jobs?{query}")) == (422, "invalid_request", [loc])


def test_a_forged_cursor_is_refused(client: FlaskClient) -> None:
    for position in ("not an id", "\x00"):
        cursor = paging.encode(position, JobListQuery())
        assert problem(client.get(f"/v1/jobs?cursor={cursor}")) == (422, "invalid_request", ["query.cursor"])


def test_a_cursor_of_another_list_is_refused(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    for _ in range(2):
        make_job()
    page = client.get("/v1/jobs?limit=1&state=queued").json
    assert page is not None
    assert problem(client.get(f"/v1/jobs?limit=1&cursor={page['next_cursor']}"))[2] == ["query.cursor"]


# --- Canceling, retrying, deleting ---


def test_canceling_is_idempotent_and_cooperative(
    client: FlaskClient, engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    queued, running = make_job(), make_job(priority=9)
    claim(engine, make_worker())
    for _ in range(2):
        answers = [client.post(f"/v1/jobs/{job.id}/cancel").json for job in (queued, running)]
        assert [answer["state"] for answer in answers if answer] == ["canceled", "canceling"]


def test_retrying_makes_a_new_job_of_the_same_spec(client: FlaskClient) -> None:
    job = client.post("/v1/jobs", json=generate()).json
    assert job is not None
    retry = job["urls"]["retry"]
    assert problem(client.post(retry))[:2] == (409, "conflict")
    client.post(job["urls"]["cancel"])
    response = client.post(retry)
    assert response.status_code == 202
    assert response.json is not None
    assert response.json["id"] != job["id"]
    assert response.json["retried_from"] == job["id"]
    assert response.json["spec"] == job["spec"]
    assert response.headers["Location"] == f"/v1/jobs/{response.json['id']}"


def test_a_job_whose_model_is_gone_is_not_retried(
    client: FlaskClient, engine: Engine, tenant: Tenant, make_model: Callable[..., Any]
) -> None:
    make_model("mine", tenant_id=tenant.id)
    job = client.post("/v1/jobs", json=generate(model="mine")).json
    assert job is not None
    client.post(job["urls"]["cancel"])
    assert client.delete("/v1/models/mine").status_code == 204
    assert problem(client.post(job["urls"]["retry"])) == (422, "unknown_model", ["model"])
    assert count(engine, tables.jobs) == 1


def test_deleting_takes_row_and_objects_and_refuses_a_job_that_goes_on(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    job = make_job()
    assert problem(client.delete(f"/v1/jobs/{job.id}"))[:2] == (409, "conflict")
    finish(engine, store, claim(engine, make_worker()))
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert client.get(f"/v1/jobs/{job.id}").status_code == 404
    assert list(store.list_keys("")) == []


def test_deleting_succeeds_while_the_store_is_away_and_leaves_the_objects_to_the_collector(
    client: FlaskClient,
    engine: Engine,
    store: ObjectStore,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(keys: object) -> None:
        raise DependencyDown("The store is away.")

    job = make_job()
    finish(engine, store, claim(engine, make_worker()))
    monkeypatch.setattr(store, "delete", away)
    assert client.delete(f"/v1/jobs/{job.id}").status_code == 204
    assert client.get(f"/v1/jobs/{job.id}").status_code == 404
    monkeypatch.undo()
    assert orphans.collect(engine, store, -60.0) == 1
    assert count(engine, tables.artifacts) == 0


def test_calls_without_a_body_refuse_one(client: FlaskClient, make_job: Callable[..., Job]) -> None:
    path = f"/v1/jobs/{make_job().id}/cancel"
    assert problem(client.post(path, json={"force": True}))[:2] == (422, "invalid_request")
    assert client.post(path, json={}).status_code == 200


# --- Tenants and scopes ---


CALLS_ON_A_JOB = [
    ("GET", ""),
    ("GET", "?wait=1"),
    ("POST", "/cancel"),
    ("POST", "/retry"),
    ("DELETE", ""),
    ("GET", "/artifacts/x"),
]


def test_a_job_of_another_tenant_does_not_exist(stranger: FlaskClient, make_job: Callable[..., Job]) -> None:
    theirs, nobodys = make_job().id, new_id()
    for method, suffix in CALLS_ON_A_JOB:
        answers = [stranger.open(f"/v1/jobs/{job_id}{suffix}", method=method) for job_id in (theirs, nobodys)]
        assert [problem(answer)[:2] for answer in answers] == [(404, "not_found")] * 2
        details = [answer.json["detail"] for answer in answers if answer.json]
        assert details[0].replace(str(theirs), "") == details[1].replace(str(nobodys), "")


def test_a_list_holds_only_the_own_jobs(stranger: FlaskClient, make_job: Callable[..., Job]) -> None:
    make_job()
    page = stranger.get("/v1/jobs").json
    assert page is not None
    assert page["data"] == []


def test_an_id_that_is_none_is_not_found(client: FlaskClient) -> None:
    for job_id in ("1", "x" * 300, "%00", "..%2f", "0198A000-0000-7000-8000-00000000000g"):
        assert problem(client.get(f"/v1/jobs/{job_id}"))[:2] == (404, "not_found")


def test_each_call_needs_its_scope(
    make_client: Callable[..., FlaskClient], tenant: Tenant, engine: Engine, make_job: Callable[..., Job]
) -> None:
    job = make_job()
    reader, writer = make_client(tenant, Scope.JOBS_READ), make_client(tenant, Scope.JOBS_WRITE)
    assert problem(reader.post("/v1/jobs", json=generate()))[:2] == (403, "forbidden")
    assert problem(reader.post(f"/v1/jobs/{job.id}/cancel"))[:2] == (403, "forbidden")
    assert problem(reader.delete(f"/v1/jobs/{job.id}"))[:2] == (403, "forbidden")
    assert problem(writer.get("/v1/jobs"))[:2] == (403, "forbidden")
    assert writer.post("/v1/jobs", json=generate()).status_code == 202
    assert reader.get(f"/v1/jobs/{job.id}").status_code == 200
