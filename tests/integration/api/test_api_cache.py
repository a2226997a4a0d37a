"""The request cache and retention over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa
from api_helpers import generate, problem
from flask.testing import FlaskClient
from sqlalchemy import Engine

from calotype import queue, request_cache, retention, tables
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import transaction
from calotype.registry import ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant

pytestmark = pytest.mark.usefixtures("small_model")

QUEUES = ("diffusion.generate",)
Json = dict[str, Any]


@pytest.fixture
def run(engine: Engine, store: ObjectStore, make_worker: Callable[..., UUID]) -> Callable[[], str]:
    """Does the next job, as a worker would; gives its id."""
    worker = make_worker(QUEUES)

    def work() -> str:
        with transaction(engine) as conn:
            job = queue.claim(conn, worker, QUEUES, 60.0)
            assert job is not None
            key = job_prefix(job.tenant_id, job.id, job.epoch) + "image-0.png"
            store.put_bytes(key, b"pixels")
            image = Artifact(name="image-0.png", object_key=key, content_type="image/png", bytes=6, sha256="b" * 64)
            queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"images": 1}, artifacts=[image]))
        return str(job.id)

    return work


@pytest.fixture
def submit(client: FlaskClient) -> Callable[..., Json]:
    """``submit(seed=…, prompt=…, **fields)``: the answer to such a request, accepted."""

    def send(seed: int | None = 1, prompt: str = "blue bird logo", **fields: Any) -> Json:
        given = {"prompt": prompt} if seed is None else {"prompt": prompt, "seed": seed}
        response = client.post("/v1/jobs", json=generate(input=given, **fields))
        assert response.status_code == 202 and response.json is not None, response.text
        return response.json

    return send


def expire(engine: Engine, store: ObjectStore, job_id: str) -> None:
    with transaction(engine) as conn:
        an_hour = tables.jobs.c.finished_at - timedelta(hours=1)
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(finished_at=an_hour))
    assert retention.sweep(engine, store, retain_seconds=60.0, keep_seconds=86_400.0) == 1


def test_an_equal_job_is_answered_with_the_images_at_once_and_without_a_ring(
    client: FlaskClient, submit: Callable[..., Json], run: Callable[[], str], settings: Settings
) -> None:
    first = submit()
    assert run() == first["id"]
    with redis.Redis.from_url(settings.broker_url) as broker:
        broker.flushdb()
        job = submit(priority=9, metadata={"other": "labels"})
        assert job["state"] == "succeeded" and job["id"] != first["id"]
        assert job["result"] == {"images": 1, "cached": True, "cached_from": first["id"]}
        assert (job["started_at"], job["attempt"], job["metadata"]) == (None, 0, {"other": "labels"})
        assert client.get(f"/v1/jobs/{job['id']}/artifacts/image-0.png").data == b"pixels"
        waited = client.post("/v1/jobs", json=generate(input={"seed": 1}), headers={"Prefer": "wait=30"})
        assert waited.status_code == 200
        assert broker.llen(QUEUES[0]) == 0


def test_bypass_makes_the_images_anew_and_any_seed_takes_what_there_is(
    submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    first = submit()
    run()
    anew = submit(cache="bypass")
    assert (anew["state"], anew["spec"]["cache"]) == ("queued", "bypass")
    assert submit(seed=2)["state"] == "queued"
    assert submit(seed=None)["state"] == "queued"
    any_seed = submit(seed=None, cache="any_seed")
    assert any_seed["result"]["cached_from"] == first["id"]
    assert submit(prompt="another", cache="any_seed")["state"] == "queued"


def test_a_request_whose_seed_was_drawn_answers_the_one_that_names_that_seed(
    submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    first = submit(seed=None)
    run()
    assert submit(seed=first["spec"]["input"]["seed"])["result"]["cached_from"] == first["id"]


def test_equal_jobs_on_their_way_run_once_also_when_the_first_is_canceled(
    client: FlaskClient, submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    first, second, third = submit(), submit(), submit()
    assert {job["state"] for job in (first, second, third)} == {"queued"}
    assert client.post(first["urls"]["cancel"]).json["state"] == "canceled"  # type: ignore[index]
    assert run() == second["id"]
    answered = client.get(third["urls"]["self"]).json
    assert answered is not None and answered["result"]["cached_from"] == second["id"]


def test_the_same_key_gives_the_same_job_and_another_key_another_of_the_same_images(
    client: FlaskClient, submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    submit()
    run()
    body = generate(input={"seed": 1})
    answers = [client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key}).json for key in ("a", "a", "b")]
    ids = [answer["id"] for answer in answers if answer is not None]
    assert ids[0] == ids[1] != ids[2]
    other = client.post("/v1/jobs", json={**body, "cache": "bypass"}, headers={"Idempotency-Key": "a"})
    assert problem(other)[:2] == (422, "idempotency_mismatch")


def test_no_tenant_is_answered_with_the_images_of_another(
    stranger: FlaskClient, submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    submit()
    run()
    for cache in ("use", "any_seed"):
        response = stranger.post("/v1/jobs", json=generate(input={"seed": 1}, cache=cache))
        assert response.json is not None and response.json["state"] == "queued"


def test_a_model_of_the_same_name_and_number_with_other_files_answers_nobody(
    client: FlaskClient,
    submit: Callable[..., Json],
    run: Callable[[], str],
    make_model: Callable[..., ModelVersion],
    tenant: Tenant,
) -> None:
    def own(source: str) -> None:
        make_model("own", tenant_id=tenant.id, files=[], source={"type": "s3", "prefix": source})

    own("one")
    submit(model="own")
    run()
    assert client.delete("/v1/models/own@1").status_code == 204
    own("two")
    assert submit(model="own")["state"] == "queued"
    run()
    assert client.delete("/v1/models/own@1").status_code == 204
    own("one")
    assert submit(model="own")["state"] == "succeeded"


def test_deleting_one_job_leaves_the_images_of_the_other(
    client: FlaskClient, store: ObjectStore, submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    first = submit()
    run()
    second = submit()
    assert client.delete(first["urls"]["self"]).status_code == 204
    assert client.get(f"{second['urls']['self']}/artifacts/image-0.png").data == b"pixels"
    # Nor may an image go that another job starts from, whoever made it.
    given = {"seed": 3, "init_image": f"{second['id']}/image-0.png"}
    assert client.post("/v1/jobs", json=generate(input=given)).status_code == 202
    assert problem(client.delete(second["urls"]["self"]))[:2] == (409, "conflict")
    assert [stored.bytes for stored in store.list_keys("tenants/")] == [6]


def test_a_job_says_that_its_artifacts_have_expired_and_so_does_a_fetch(
    client: FlaskClient, engine: Engine, store: ObjectStore, submit: Callable[..., Json], run: Callable[[], str]
) -> None:
    job = submit()
    run()
    assert client.get(job["urls"]["self"]).json["artifacts_expired_at"] is None  # type: ignore[index]
    expire(engine, store, job["id"])
    now = client.get(job["urls"]["self"]).json
    assert now is not None and now["state"] == "succeeded"
    assert now["artifacts"] == [] and now["artifacts_expired_at"].endswith("Z")
    fetched = client.get(f"{job['urls']['self']}/artifacts/image-0.png")
    assert problem(fetched)[:2] == (410, "artifacts_expired")
    assert "/retry" in fetched.json["detail"]  # type: ignore[index]
    refused = client.post("/v1/jobs", json=generate(input={"init_image": f"{job['id']}/image-0.png"}))
    assert problem(refused) == (422, "invalid_request", ["input.init_image"])
    # And it answers nobody any more.
    assert submit()["state"] == "queued"


def test_a_submission_that_postgres_ends_for_a_deadlock_is_made_anew(
    client: FlaskClient,
    engine: Engine,
    submit: Callable[..., Json],
    run: Callable[[], str],
    tenant: Tenant,
    eventually: Callable[..., Any],
) -> None:
    # One job alone locks in an order that allows none; many in one transaction may count a hit and then want more.
    first = submit()
    run()
    usage = sa.select(tables.usage).where(tables.usage.c.tenant_id == tenant.id).with_for_update()
    key = sa.select(tables.jobs.c.cache_key).where(tables.jobs.c.id == first["id"])
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.post("/v1/jobs", json=generate(input={"seed": 1}))))
    with transaction(engine) as conn:
        # It is not to be the one that gives way.
        conn.execute(sa.text("SET LOCAL deadlock_timeout = '60s'"))
        conn.execute(usage)
        cache_key = conn.scalar(key)
        thread.start()
        blocked = sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        eventually(lambda: conn.scalar(blocked), timeout=30)
        request_cache.find(conn, tenant.id, "use", cache_key, "any")
    thread.join(60)
    assert answers[0].status_code == 202 and answers[0].json["state"] == "succeeded"


TRAIN = {
    "kind": "train",
    "family": "diffusion",
    "model": "small-model",
    "input": {"dataset": "logos", "steps": 1, "output_model": "mine"},
}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (generate(cache="never"), "cache"),
        (generate(cache=True), "cache"),
        (generate(retain_seconds=-1), "retain_seconds"),
        (generate(retain_seconds=0), "retain_seconds"),
        (generate(retain_seconds=1e9), "retain_seconds"),
        ({**TRAIN, "cache": "use"}, "cache"),
        ({**TRAIN, "retain_seconds": "1"}, "retain_seconds"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_field(client: FlaskClient, body: Json, field: str) -> None:
    assert problem(client.post("/v1/jobs", json=body)) == (422, "invalid_request", [field])
