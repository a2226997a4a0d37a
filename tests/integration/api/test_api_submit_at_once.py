"""Most jobs are recorded by one statement, by what names of models meant the last time; it is the same as without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from api_helpers import generate, problem
from flask import Flask
from flask.testing import FlaskClient

from api.services import EXTENSION, Services
from calotype import queue, registry, tables, tenants
from calotype.database import transaction
from calotype.errors import Conflict
from calotype.references import Memory, Remembered
from calotype.registry import ModelVersion
from calotype.specs import parse
from calotype.submission import complete
from calotype.tenants import Tenant


@pytest.fixture
def here(app: Flask) -> Services:
    found: Services = app.extensions[EXTENSION]
    return found


@pytest.fixture
def warm(client: FlaskClient, make_model: Callable[..., ModelVersion]) -> FlaskClient:
    """A client that has submitted before."""
    make_model("small-model")
    submit(client)
    return client


def submit(client: FlaskClient, key: str | None = None, **values: Any) -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key is not None else {}
    response = client.post("/v1/jobs", json=generate(**values), headers=headers)
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json or {}
    return body


@contextmanager
def statements(engine: sa.Engine) -> Iterator[list[str]]:
    """What is sent to Postgres."""
    seen: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


def jobs_of(engine: sa.Engine) -> int:
    with transaction(engine) as conn:
        return conn.execute(sa.select(sa.func.count()).select_from(tables.jobs)).scalar_one()


def test_a_job_with_a_key_takes_one_statement_beside_that_which_asks_who_calls(
    warm: FlaskClient, here: Services, engine: sa.Engine
) -> None:
    with statements(here.statements) as seen, statements(engine) as others:
        job = submit(warm, "once")
    assert [("INSERT INTO jobs" in one, "api_keys" in one) for one in seen] == [(False, True), (True, False)]
    assert others in ([], seen)
    assert job["state"] == "queued" and job["model"] == "small-model@1"
    with transaction(engine) as conn:
        told = conn.execute(
            sa.select(tables.events.c.seq, tables.events.c.data).where(tables.events.c.job_id == job["id"])
        ).all()
        key = conn.execute(sa.select(tables.idempotency_keys.c.key)).scalar_one()
    assert [tuple(row) for row in told] == [(1, {"state": "queued", "attempt": 0})]
    assert key == "once"


def test_the_job_that_a_submission_gives_is_the_one_in_the_table(
    warm: FlaskClient, engine: sa.Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    memory, version = Memory(), make_model("small-model")
    memory.note(tenant.id, "small-model", version)
    references = Remembered(memory, tenant.id)
    whole = generate(
        priority=7, max_attempts=2, deadline_seconds=60, timeout_seconds=30.5, retain_seconds=3600, metadata={"a": "b"}
    )
    plain, full = (complete(references, tenant.id, parse(body)) for body in (generate(), whole))
    for new in (plain, full):
        with transaction(engine) as conn:
            given = [queue.submit_at_once(conn, new, references.used), queue.submit(conn, new)]
            stored = [queue.get(conn, tenant.id, job.id) for job in given if job is not None]
        assert given == stored


def test_a_name_means_the_newest_version_from_the_moment_it_is_there(
    warm: FlaskClient, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("small-model")
    assert submit(warm)["model"] == "small-model@2"
    assert submit(warm, model="small-model@1")["model"] == "small-model@1"
    assert submit(warm, model="small-model@1")["model"] == "small-model@1"


def test_a_tenants_own_model_of_that_name_goes_first(
    warm: FlaskClient, engine: sa.Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    own = make_model("other-name", tenant_id=tenant.id)
    with transaction(engine) as conn:
        # As it was registered before the shared one.
        models = tables.model_versions
        conn.execute(models.update().where(models.c.id == own.id).values(name="small-model"))
    job = submit(warm)
    with transaction(engine) as conn:
        key = conn.execute(sa.select(tables.jobs.c.model_key).where(tables.jobs.c.id == job["id"])).scalar_one()
    assert key == f"small-model@1#{own.id}"


def test_what_the_remembered_version_could_not_do_is_looked_up_again(
    warm: FlaskClient, make_model: Callable[..., ModelVersion]
) -> None:
    wide = {"input": {"width": 256, "height": 256}}
    assert problem(warm.post("/v1/jobs", json=generate(**wide)))[0] == 422
    larger = make_model("small-model")
    make_model("small-model", parameters={**larger.parameters, "max_size": 512})
    assert submit(warm, **wide)["model"] == "small-model@3"


def test_a_model_that_is_gone_is_unknown_and_nothing_is_recorded(
    client: FlaskClient, engine: sa.Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("mine", tenant_id=tenant.id)
    job = submit(client, model="mine")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete("/v1/models/mine").status_code == 204
    assert problem(client.post("/v1/jobs", json=generate(model="mine"))) == (422, "unknown_model", ["model"])
    assert jobs_of(engine) == 1


def test_a_repeated_key_gives_its_job_whatever_became_of_the_model(
    client: FlaskClient, tenant: Tenant, engine: sa.Engine, make_model: Callable[..., ModelVersion]
) -> None:
    make_model("mine", tenant_id=tenant.id)
    submit(client, model="mine")
    job = submit(client, "again", model="mine")
    assert submit(client, "again", model="mine")["id"] == job["id"]
    changed = client.post("/v1/jobs", json=generate(model="mine", priority=7), headers={"Idempotency-Key": "again"})
    assert problem(changed)[:2] == (422, "idempotency_mismatch")
    for one in client.get("/v1/jobs").json["data"]:  # type: ignore[index]
        client.post(f"/v1/jobs/{one['id']}/cancel")
    assert client.delete("/v1/models/mine").status_code == 204
    assert submit(client, "again", model="mine")["id"] == job["id"]
    with transaction(engine) as conn:
        tenants.change_tenant(conn, tenant.name, max_queued=0)
    assert submit(client, "again", model="mine")["id"] == job["id"]
    assert jobs_of(engine) == 2


def test_a_limit_that_came_later_holds(warm: FlaskClient, engine: sa.Engine, tenant: Tenant) -> None:
    with transaction(engine) as conn:
        tenants.change_tenant(conn, tenant.name, max_queued=2)
    submit(warm)
    assert problem(warm.post("/v1/jobs", json=generate()))[:2] == (429, "limit_exceeded")
    assert jobs_of(engine) == 2


def test_a_model_is_not_deleted_under_the_hands_of_the_statement_that_names_it(
    client: FlaskClient, engine: sa.Engine, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    version = make_model("mine", tenant_id=tenant.id)
    submit(client, model="mine@1")
    with transaction(engine) as conn:
        conn.execute(sa.text("DELETE FROM idempotency_keys"))
        conn.execute(sa.text("DELETE FROM events"))
        conn.execute(sa.text("DELETE FROM jobs"))
    memory = Memory()
    memory.note(tenant.id, "mine", version)
    references = Remembered(memory, tenant.id)
    new = complete(references, tenant.id, parse(generate(model="mine")))

    def delete() -> list[str]:
        with transaction(engine) as conn:
            return registry.delete_model(conn, tenant.id, "mine")

    with ThreadPoolExecutor(1) as pool:
        with transaction(engine) as conn:
            assert queue.submit_at_once(conn, new, references.used) is not None
            deletion = pool.submit(delete)
            with pytest.raises(TimeoutError):
                deletion.result(timeout=0.5)
        with pytest.raises(Conflict, match="needs mine@1"):
            deletion.result(timeout=20)


def test_the_names_used_least_lately_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, tenant: Tenant, make_model: Callable[..., ModelVersion]
) -> None:
    monkeypatch.setattr("calotype.references.MOST_REMEMBERED", 2)
    memory, version = Memory(), make_model("small-model")
    for name in ("one", "two"):
        memory.note(tenant.id, name, version)
    assert memory.recall(tenant.id, "one") == version
    memory.note(tenant.id, "three", version)
    assert [memory.recall(tenant.id, name) is not None for name in ("one", "two", "three")] == [True, False, True]
