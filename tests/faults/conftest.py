"""Servers that may be killed, real processes of every part, and the account that each fault must settle."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine

from calotype import tenants
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, migrate, transaction
from calotype.jobs import Job
from calotype.local.services import Services
from calotype.registry import ModelVersion
from calotype.settings import Settings
from calotype.tenants import Tenant
from tests.faults import small_model
from tests.faults.accounting import Accounts
from tests.faults.processes import Processes, Running, answers
from tests.faults.servers import Servers, make_servers
from tests.integration import worker_handlers

TEMPLATE = "template_faults"
#: The lease of all processes here, seconds; what "past the lease" means to a test.
LEASE = 3.0


@pytest.fixture(scope="session")
def servers(services_dir: Path) -> Iterator[Servers]:
    """Servers of this suite alone: other suites need theirs alive."""
    made = make_servers(services_dir / "faults")
    yield made
    made.stop()


@pytest.fixture(scope="session")
def services(servers: Servers) -> Services:
    """The same, as the fixtures that all suites share know them."""
    return Services(postgres=servers.postgres.service, redis=servers.redis.service, s3=servers.s3.service)


@pytest.fixture(scope="session")
def template_database(services: Services) -> str:
    """Migrated, on the suite's own Postgres."""
    services.postgres.ensure_database(TEMPLATE)
    engine = connect_engine(Settings(database_url=services.postgres.url(TEMPLATE)), application_name="template")
    migrate(engine)
    engine.dispose()
    return TEMPLATE


@pytest.fixture
def settings(settings: Settings, servers: Servers) -> Iterator[Settings]:
    """Short leases; what a test has broken is whole again before its database is dropped."""
    yield dataclasses.replace(settings, lease_seconds=LEASE, heartbeat_seconds=0.5, log_format="text")
    servers.start()


@pytest.fixture
def processes(settings: Settings, store: ObjectStore, tmp_path: Path) -> Iterator[Processes]:
    """Starts workers, reconcilers and APIs on the test's database, broker and bucket."""
    made = Processes(settings, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def accounts(engine: Engine, store: ObjectStore, processes: Processes) -> Accounts:
    return Accounts(engine, store, processes.beginnings)


@pytest.fixture
def tenant(make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant()


@pytest.fixture
def submit(make_job: Callable[..., Job], tenant: Tenant) -> Callable[..., Job]:
    """``submit("work", plan={"seconds": 0.1}, **fields of NewJob)``: a queued job for which nobody has rung."""

    def make(do: str = "image", plan: dict[str, Any] | None = None, **fields: Any) -> Job:
        # No two are alike, so that none is answered from another's images.
        alike = {"text": secrets.token_hex(8)} if do in ("image", "work") else {}
        return make_job(
            fields.pop("tenant", tenant), spec=worker_handlers.spec(do, **{**alike, **(plan or {})}), **fields
        )

    return make


@pytest.fixture
def model(engine: Engine, store: ObjectStore) -> ModelVersion:
    """A model that every tenant may use, with one small file in the store."""
    return small_model.register(engine, store)


@pytest.fixture
def http(engine: Engine, tenant: Tenant) -> Iterator[httpx.Client]:
    """A client of the tenant; give it whole addresses."""
    with transaction(engine) as conn:
        _, key = tenants.create_key(conn, tenant)
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60.0) as client:
        yield client


@pytest.fixture
def request_body(model: ModelVersion) -> Callable[..., dict[str, Any]]:
    """``request_body("work", seconds=0.1)``: a job as clients ask for it, each with a seed of its own."""

    def make(do: str = "image", **plan: Any) -> dict[str, Any]:
        return small_model.request(do, **plan)

    return make


@pytest.fixture
def api(processes: Processes, model: ModelVersion, eventually: Callable[..., Any]) -> Callable[..., Running]:
    """``api(*options, **changed settings)``: an API process that answers."""

    def start(*options: str, **changes: Any) -> Running:
        started = processes.api(f"api-{len(list(processes.folder.glob('api-*')))}", *options, **changes)
        eventually(lambda: answers(started), 30.0)
        return started

    return start
