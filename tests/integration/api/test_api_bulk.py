"""Many jobs in one call: every line is answered on its own."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa
from api_helpers import generate, problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine
from werkzeug.test import TestResponse

from api.resources import bulk
from calotype import queue, tables
from calotype.database import transaction
from calotype.errors import DependencyDown, Invalid
from calotype.jobs import Job
from calotype.settings import Settings
from calotype.tenants import Tenant

pytestmark = pytest.mark.usefixtures("small_model")


def line(seed: int, **values: Any) -> dict[str, Any]:
    return generate(input={"seed": seed, **values.pop("input", {})}, **values)


def send(client: FlaskClient, *lines: Any, **options: Any) -> TestResponse:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    return client.post("/v1/jobs:bulk", data="\n".join(texts), content_type="application/x-ndjson", **options)


def answers(response: TestResponse) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(text) for text in response.text.split("\n") if text]


def count(engine: Engine) -> int:
    with transaction(engine) as conn:
        return int(conn.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar_one())


def test_every_line_is_submitted_and_answered_in_order(client: FlaskClient, engine: Engine) -> None:
    got = answers(send(client, *(line(seed, priority=seed % 10) for seed in range(120))))
    assert [one["index"] for one in got] == list(range(120))
    assert {one["status"] for one in got} == {202}
    assert [one["job"]["spec"]["input"]["seed"] for one in got] == list(range(120))
    assert count(engine) == 120
    shown = client.get(f"/v1/jobs/{got[7]['job']['id']}").json
    assert shown == got[7]["job"]


def test_a_bad_line_is_answered_like_a_bad_request_and_hurts_no_other(client: FlaskClient, engine: Engine) -> None:
    wrong = [
        ("{", 400, "malformed_request"),
        ('{"kind": "generate", "kind": "train"}', 400, "malformed_request"),
        ("[]", 422, "invalid_request"),
        (line(1, input={"width": 60}), 422, "unsupported_size"),
        (line(1, model="no-such"), 422, "unknown_model"),
        (line(1, priority=11), 422, "invalid_request"),
        ({"kind": "generate", "family": "hybrid", "model": "m", "input": {}}, 422, "family_unavailable"),
        (line(1, idempotency_key="a key"), 422, "invalid_request"),
        (line(1, idempotency_key=7), 422, "invalid_request"),
        (line(1, webhook={"url": "https://10.0.0.1/"}), 422, "invalid_request"),
        (line(1, metadata={"a": "x" * 2_000_000}), 413, "too_large"),
    ]
    lines = [part for number, (text, *_) in enumerate(wrong) for part in (text, line(100 + number))]
    got = answers(send(client, *lines))
    assert [one["status"] for one in got[1::2]] == [202] * len(wrong)
    assert [(one["status"], one["problem"]["code"]) for one in got[::2]] == [
        (status, code) for _, status, code in wrong
    ]
    assert all("job" not in one for one in got[::2]) and all("problem" not in one for one in got[1::2])
    assert count(engine) == len(wrong)


def test_the_problem_of_a_line_is_that_of_a_single_submission(client: FlaskClient) -> None:
    bad = line(1, input={"steps": 0})
    (got,) = answers(send(client, bad))
    single = client.post("/v1/jobs", json=bad)
    assert got["status"] == single.status_code
    assert {**got["problem"], "instance": "/v1/jobs"} == single.json


def test_a_text_may_hold_what_else_ends_lines(client: FlaskClient) -> None:
    prompt = "a\u2028b\u0085c\rd\ne"
    body = json.dumps(generate(input={"prompt": prompt}), ensure_ascii=False)
    (got,) = answers(send(client, body))
    assert got["job"]["spec"]["input"]["prompt"] == prompt


def test_empty_lines_are_not_counted(client: FlaskClient) -> None:
    assert [one["index"] for one in answers(send(client, "", line(1), "  \r", line(2), ""))] == [0, 1]


@pytest.mark.parametrize("count_", [0, 1001])
def test_no_line_and_too_many_are_refused_whole(client: FlaskClient, engine: Engine, count_: int) -> None:
    response = send(client, *(line(seed) for seed in range(count_)))
    assert problem(response)[:2] == (422, "invalid_request")
    assert "1 to 1000 lines" in response.text
    assert count(engine) == 0


def test_a_body_that_is_too_large_in_all_is_refused_whole(
    client: FlaskClient, app: Flask, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = app.extensions["calotype"]
    monkeypatch.setitem(
        app.extensions,
        "calotype",
        dataclasses.replace(here, settings=dataclasses.replace(here.settings, max_body_bytes=500)),
    )
    response = send(client, *(line(seed) for seed in range(80)))
    assert problem(response)[:2] == (413, "too_large")
    assert count(engine) == 0


def test_other_content_types_and_a_key_for_the_whole_are_refused(client: FlaskClient) -> None:
    assert client.post("/v1/jobs:bulk", json=line(1)).status_code == 415
    response = send(client, line(1), headers={"Idempotency-Key": "k"})
    assert problem(response) == (422, "invalid_request", ["header.Idempotency-Key"])


def test_a_key_gives_the_same_job_again_in_bulk_and_alone(client: FlaskClient, engine: Engine) -> None:
    lines = [line(seed, idempotency_key=f"row-{seed}") for seed in range(3)]
    first, again = (
        answers(send(client, *lines)),
        answers(send(client, *reversed(lines), line(9, idempotency_key="row-1"))),
    )
    ids = [one["job"]["id"] for one in first]
    assert [one["job"]["id"] for one in again[:3]] == ids[::-1]
    assert again[3]["problem"]["code"] == "idempotency_mismatch"
    alone = client.post("/v1/jobs", json=line(2), headers={"Idempotency-Key": "row-2"})
    assert alone.json is not None and alone.json["id"] == ids[2]
    twice = answers(send(client, *[line(7, idempotency_key="same")] * 2))
    assert twice[0]["job"]["id"] == twice[1]["job"]["id"]
    assert count(engine) == 4


def test_lines_beyond_the_tenants_limit_are_answered_429(client: FlaskClient, engine: Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        conn.execute(tables.tenants.update().where(tables.tenants.c.id == tenant.id).values(max_queued=70))
    got = answers(send(client, *(line(seed) for seed in range(75))))
    assert [one["status"] for one in got] == [202] * 70 + [429] * 5
    assert all(one["problem"]["code"] == "limit_exceeded" and one["retry_after"] > 0 for one in got[70:])
    assert count(engine) == 70


def test_each_queue_is_rung_for_once(
    client: FlaskClient, settings: Settings, eventually: Callable[..., object]
) -> None:
    answers(send(client, *(line(seed) for seed in range(60))))
    assert settings.broker_url is not None
    with redis.Redis.from_url(settings.broker_url) as broker:
        eventually(lambda: broker.llen("diffusion.generate"))
        assert broker.llen("diffusion.generate") == 1


def test_a_line_that_meets_a_defect_is_500_and_hurts_no_other(
    client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = queue.submit

    def submit(conn: sa.Connection, new: queue.NewJob) -> Any:
        job = real(conn, new)
        if new.spec["input"]["seed"] == 1:
            conn.execute(sa.text("SELECT 1 / 0"))
        return job

    monkeypatch.setattr(queue, "submit", submit)
    got = answers(send(client, line(0), line(1), line(2)))
    assert [one["status"] for one in got] == [202, 500, 202]
    assert got[1]["problem"]["code"] == "internal_error" and "zero" not in json.dumps(got[1])
    assert count(engine) == 2


def test_what_is_recorded_before_postgres_goes_away_is_kept_and_the_rest_says_so(
    client: FlaskClient, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = queue.submit

    def submit(conn: sa.Connection, new: queue.NewJob) -> Job:
        if new.spec["input"]["seed"] == bulk.CHUNK + 3:
            conn.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return real(conn, new)

    monkeypatch.setattr(queue, "submit", submit)
    got = answers(send(client, *(line(seed) for seed in range(3 * bulk.CHUNK))))
    assert [one["status"] for one in got] == [202] * bulk.CHUNK + [503] * 2 * bulk.CHUNK
    assert {one["problem"]["code"] for one in got[bulk.CHUNK :]} == {"dependency_down"}
    assert count(engine) == bulk.CHUNK


def test_when_postgres_is_away_from_the_beginning_the_call_says_so(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise DependencyDown("Postgres is away.")

    monkeypatch.setattr(bulk, "_record", away)
    assert problem(send(client, line(1)))[:2] == (503, "dependency_down")


def test_two_calls_with_the_same_jobs_in_another_order_both_succeed(
    app: Flask, make_client: Callable[..., FlaskClient], tenant: Tenant, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line(seed, idempotency_key=f"row-{seed}") for seed in range(20)]
    without_keys = [line(1000 + seed) for seed in range(20)]
    barrier = threading.Barrier(2)
    waited = threading.local()
    real = queue.submit

    def submit(conn: sa.Connection, new: queue.NewJob) -> Job:
        # Both hold the first of their lines before either asks for what the other holds.
        seed = new.spec["input"]["seed"]
        if seed >= 1000 and not getattr(waited, "done", False) and seed not in (1000, 1019):
            waited.done = True
            barrier.wait(20)
        return real(conn, new)

    monkeypatch.setattr(queue, "submit", submit)
    got: list[list[dict[str, Any]]] = []

    def run(bodies: list[dict[str, Any]]) -> None:
        got.append(answers(send(make_client(tenant), *bodies)))

    for bodies in (lines, without_keys):
        threads = [threading.Thread(target=run, args=(order,)) for order in (bodies, bodies[::-1])]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(got) == 4
    assert {one["status"] for result in got for one in result} == {202}
    keyed = [{one["job"]["id"] for one in result} for result in got[:2]]
    assert keyed[0] == keyed[1] and len(keyed[0]) == 20


@pytest.fixture
def take(engine: Engine, make_worker: Callable[..., UUID]) -> Callable[[], Job]:
    """The next job, now in a worker's hands."""

    def claim() -> Job:
        with transaction(engine) as conn:
            job = queue.claim(conn, make_worker(), ["diffusion.generate"], 60.0)
        assert job is not None
        return job

    return claim


@pytest.fixture
def ended(client: FlaskClient, engine: Engine, take: Callable[[], Job]) -> Callable[..., Job]:
    """``ended(seed)``: a job that succeeded, from which equal ones are answered."""

    def end(seed: int) -> Job:
        answers(send(client, line(seed)))
        job = take()
        with transaction(engine) as conn:
            return queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"images": 1}))

    return end


def usage(engine: Engine) -> tuple[int, int]:
    """How many jobs ended, and how many of them were answered from an equal one."""
    table = tables.usage
    with transaction(engine) as conn:
        row = conn.execute(sa.select(sa.func.sum(table.c.jobs), sa.func.sum(table.c.cached))).one()
    return int(row[0] or 0), int(row[1] or 0)


def test_lines_that_are_answered_from_the_cache_are_counted_once_each_and_refused_ones_not(
    client: FlaskClient, engine: Engine, ended: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(1), ended(2)
    real = queue.submit

    def submit(conn: sa.Connection, new: queue.NewJob) -> Any:
        job = real(conn, new)
        if new.metadata:
            # After it was counted.
            raise Invalid("no")
        return job

    monkeypatch.setattr(queue, "submit", submit)
    got = answers(send(client, line(1), line(1, metadata={"refused": "yes"}), line(2), line(1), line(3)))
    assert [one["status"] for one in got] == [202, 422, 202, 202, 202]
    assert [one["job"]["state"] for one in got if "job" in one] == ["succeeded"] * 3 + ["queued"]
    assert usage(engine) == (5, 3)


def test_a_call_with_a_cached_line_does_not_hold_up_the_end_of_a_job_that_a_later_line_waits_for(
    client: FlaskClient,
    engine: Engine,
    ended: Callable[..., Job],
    take: Callable[[], Job],
    eventually: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended(1)
    answers(send(client, line(2)))
    leader = take()
    recorded: list[int] = []
    real = bulk._record_chunk

    def record(here: Any, tenant_id: Any, chunk: Any) -> Any:
        recorded.append(len(chunk))
        return real(here, tenant_id, chunk)

    def blocked() -> bool:
        with transaction(engine) as conn:
            return bool(conn.execute(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted")).scalar_one())

    monkeypatch.setattr(bulk, "_record_chunk", record)
    with ThreadPoolExecutor(1) as pool:
        with transaction(engine) as conn:
            conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == leader.id).with_for_update())
            sent = pool.submit(send, client, line(1), line(2))
            # The first line is recorded, the second waits for the leader's row.
            eventually(blocked, timeout=30)
            # Usage comes last here, too; were it held by the call, each would wait for the other.
            queue.finish(conn, leader.id, leader.epoch, queue.Outcome(result={"images": 1}))
        got = answers(sent.result(60))
    assert [one["job"]["state"] for one in got] == ["succeeded"] * 2
    # At once: not again, line by line, after a deadlock.
    assert recorded == [2]


def test_a_tenant_submits_for_itself_only(client: FlaskClient, stranger: FlaskClient) -> None:
    (got,) = answers(send(client, line(1, idempotency_key="k")))
    assert stranger.get(f"/v1/jobs/{got['job']['id']}").status_code == 404
    (other,) = answers(send(stranger, line(1, idempotency_key="k")))
    assert other["job"]["id"] != got["job"]["id"]
