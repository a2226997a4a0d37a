"""Pausing queues, draining workers and usage over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from api_helpers import problem
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine

from api.services import EXTENSION
from calotype import queue, tables, tenants
from calotype.database import transaction
from calotype.ids import new_id
from calotype.jobs import SERVED_QUEUES, Job
from calotype.queue import Outcome
from calotype.tenants import Scope, Tenant

QUEUE = "diffusion.generate"


@pytest.fixture
def rung(app: Flask, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queues whose bell the API rang."""
    rings: list[str] = []
    monkeypatch.setattr(app.extensions[EXTENSION].doorbell, "ring", rings.append)
    return rings


def _queue(client: FlaskClient) -> dict[str, Any]:
    page = client.get("/v1/queues").json
    assert page is not None
    return next(one for one in page["data"] if one["name"] == QUEUE)


def test_a_queue_is_paused_and_resumed_and_twice_is_harmless(
    admin: FlaskClient,
    client: FlaskClient,
    engine: Engine,
    make_job: Callable[..., Job],
    rung: list[str],
    make_worker: Callable[..., UUID],
) -> None:
    worker, job = make_worker(), make_job()
    first = admin.post(f"/v1/queues/{QUEUE}/pause", json={"reason": "new drivers"}).json
    assert first is not None and first["paused"] is True
    second = admin.post(f"/v1/queues/{QUEUE}/pause", json={"reason": "newer drivers"}).json
    assert second == {**first, "pause_reason": "newer drivers", "oldest_wait_seconds": second["oldest_wait_seconds"]}
    seen = _queue(client)
    assert (seen["paused"], seen["pause_reason"], seen["paused_at"]) == (True, "newer drivers", first["paused_at"])
    with transaction(engine) as conn:
        assert queue.claim(conn, worker, [QUEUE], 60.0) is None
    assert rung == []
    for _ in range(2):
        opened = admin.post(f"/v1/queues/{QUEUE}/resume").json
        assert opened is not None
        assert (opened["paused"], opened["pause_reason"], opened["paused_at"]) == (False, None, None)
    # Idle workers need not wait for their clock.
    assert set(rung) == {QUEUE}
    with transaction(engine) as conn:
        claimed = queue.claim(conn, worker, [QUEUE], 60.0)
    assert claimed is not None and claimed.id == job.id


def test_a_pause_needs_no_reason_and_refuses_what_is_none(admin: FlaskClient) -> None:
    bare = admin.post(f"/v1/queues/{QUEUE}/pause").json
    assert bare is not None and (bare["paused"], bare["pause_reason"]) == (True, "")
    for body, loc in (({"why": "x"}, "why"), ({"reason": 1}, "reason"), ({"reason": "x" * 501}, "reason")):
        assert problem(admin.post(f"/v1/queues/{QUEUE}/pause", json=body)) == (422, "invalid_request", [loc])
    for call in ("pause", "resume"):
        assert problem(admin.post(f"/v1/queues/diffusion.paint/{call}"))[:2] == (404, "not_found")
    assert problem(admin.post(f"/v1/queues/{QUEUE}/resume", json={"reason": "x"}))[:2] == (422, "invalid_request")


def test_a_worker_is_drained_and_takes_jobs_again(
    admin: FlaskClient, client: FlaskClient, rung: list[str], make_worker: Callable[..., UUID]
) -> None:
    worker = make_worker()
    for call, draining in (("drain", True), ("drain", True), ("undrain", False), ("undrain", False)):
        answer = admin.post(f"/v1/workers/{worker}/{call}").json
        assert answer is not None and (answer["id"], answer["draining"]) == (str(worker), draining)
        page = client.get("/v1/workers").json
        assert page is not None and page["data"][0]["draining"] is draining
    assert set(rung) == {QUEUE}


@pytest.mark.parametrize("call", ["drain", "undrain"])
def test_a_worker_that_is_not_there_is_not_found(
    admin: FlaskClient, engine: Engine, make_worker: Callable[..., UUID], call: str
) -> None:
    gone = make_worker()
    with transaction(engine) as conn:
        conn.execute(tables.workers.update().values(retired_at=datetime.now(UTC)))
    for worker in (gone, new_id(), "w"):
        assert problem(admin.post(f"/v1/workers/{worker}/{call}"))[:2] == (404, "not_found")


def test_what_changes_the_fleet_needs_the_scope_admin(client: FlaskClient) -> None:
    for path in (
        f"/v1/queues/{QUEUE}/pause",
        f"/v1/queues/{QUEUE}/resume",
        f"/v1/workers/{new_id()}/drain",
        f"/v1/workers/{new_id()}/undrain",
    ):
        assert problem(client.post(path))[:2] == (403, "forbidden")


# --- Usage ---


@pytest.fixture
def use(engine: Engine) -> Callable[..., None]:
    """`use(tenant, days_ago, **columns)` writes what a tenant used on a day."""

    def write(tenant: Tenant, days_ago: int, **columns: Any) -> None:
        values = {"tenant_id": tenant.id, "day": _day(days_ago), "queue": QUEUE, **columns}
        with transaction(engine) as conn:
            conn.execute(tables.usage.insert().values(**values))

    return write


def _day(days_ago: int) -> date:
    return datetime.now(UTC).date() - timedelta(days=days_ago)


def _days(client: FlaskClient, query: str = "") -> list[str]:
    page = client.get(f"/v1/usage{query}").json
    assert page is not None
    return [one["day"] for one in page["data"]]


def test_a_job_that_ended_is_counted_on_its_day(
    client: FlaskClient, engine: Engine, tenant: Tenant, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    make_job(units=4)
    with transaction(engine) as conn:
        job = queue.claim(conn, make_worker(), [QUEUE], 60.0)
    assert job is not None
    with transaction(engine) as conn:
        queue.finish(conn, job.id, job.epoch, Outcome(result={}))
    page = client.get("/v1/usage").json
    assert page is not None
    (day,) = page["data"]
    assert day["gpu_seconds"] >= 0
    assert day == {
        "tenant": tenant.name,
        "day": str(_day(0)),
        "queue": QUEUE,
        "jobs": 1,
        "cached": 0,
        "images": 4,
        "gpu_seconds": day["gpu_seconds"],
    }


def test_usage_is_listed_for_the_days_asked_for_newest_first(
    client: FlaskClient, tenant: Tenant, use: Callable[..., None]
) -> None:
    for days_ago in (0, 3, 29, 30, 300):
        use(tenant, days_ago)
    assert _days(client) == [str(_day(0)), str(_day(3)), str(_day(29))]
    assert _days(client, f"?from={_day(30)}&to={_day(3)}") == [str(_day(n)) for n in (3, 29, 30)]
    assert _days(client, f"?to={_day(290)}") == [str(_day(300))]
    assert len(_days(client, f"?from={_day(365)}")) == 5
    first = client.get("/v1/usage?limit=2").json
    assert first is not None and first["has_more"]
    assert _days(client, f"?limit=2&cursor={first['next_cursor']}") == [str(_day(29))]


@pytest.fixture
def operator(app: Flask, engine: Engine, make_tenant: Callable[..., Tenant]) -> FlaskClient:
    """A client whose key may look and administer."""
    with transaction(engine) as conn:
        _, key = tenants.create_key(conn, make_tenant("staff"), scopes=[Scope.JOBS_READ, Scope.ADMIN])
    made = app.test_client()
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return made


def test_a_tenant_sees_its_own_usage_and_an_admin_all(
    client: FlaskClient,
    operator: FlaskClient,
    tenant: Tenant,
    make_tenant: Callable[..., Tenant],
    use: Callable[..., None],
) -> None:
    stranger = make_tenant("stranger")
    use(tenant, 0, jobs=3, gpu_seconds=1.5)
    use(stranger, 0, jobs=4)
    own = client.get("/v1/usage").json
    assert own is not None
    assert [(one["tenant"], one["jobs"], one["gpu_seconds"]) for one in own["data"]] == [(tenant.name, 3, 1.5)]
    assert client.get(f"/v1/usage?tenant={tenant.name}").json == own
    for other in ("stranger", "*", "nobody"):
        assert problem(client.get(f"/v1/usage?tenant={other}"))[:2] == (403, "forbidden")
    assert operator.get(f"/v1/usage?tenant={tenant.name}").json == own
    everybody = operator.get("/v1/usage?tenant=*").json
    assert everybody is not None
    assert {one["tenant"] for one in everybody["data"]} == {tenant.name, "stranger"}
    assert _days(operator) == []
    assert problem(operator.get("/v1/usage?tenant=nobody"))[:2] == (404, "not_found")


@pytest.mark.parametrize(
    ("query", "loc"),
    [
        ("from=yesterday", "query.from"),
        ("from=1700000000", "query.from"),
        ("to=2026-02-30", "query.to"),
        ("to=2026-02-01T00:00:00Z", "query.to"),
        ("from=2026-02-02&to=2026-02-01", "query.from"),
        ("from=2025-01-01&to=2026-02-01", "query.from"),
        ("first=2026-02-01", "query.first"),
    ],
)
def test_days_that_make_no_sense_are_refused(client: FlaskClient, query: str, loc: str) -> None:
    assert problem(client.get(f"/v1/usage?{query}")) == (422, "invalid_request", [loc])


def test_the_first_of_all_days_can_be_asked_for(client: FlaskClient) -> None:
    assert _days(client, "?to=0001-01-01") == []


def test_every_served_queue_can_be_paused(admin: FlaskClient) -> None:
    for name in SERVED_QUEUES:
        assert admin.post(f"/v1/queues/{name}/pause").status_code == 200
