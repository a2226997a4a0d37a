"""Rows that integration tests start from."""

from __future__ import annotations

import itertools
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
import worker_handlers
from sqlalchemy import Engine
from webhook_receiver import Receiver

from calotype import queue, registry, tables, tenants, workers
from calotype.client import Client
from calotype.database import transaction
from calotype.ids import new_id
from calotype.jobs import Artifact, Family, Job, Kind
from calotype.registry import ModelFile, ModelVersion, NewVersion
from calotype.settings import Settings, environment
from calotype.tenants import Tenant

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)
#: The parameters of a small model, as the starter has them.
SMALL = {
    "default_width": 64,
    "default_height": 64,
    "size_multiple": 8,
    "min_size": 32,
    "max_size": 128,
    "default_steps": 20,
    "max_steps": 100,
    "default_guidance_scale": 3.0,
    "max_text_tokens": 17,
}


@pytest.fixture
def make_tenant(engine: Engine) -> Callable[..., Tenant]:
    """``make_tenant(name=None, **limits)``"""

    def make(name: str | None = None, **limits: Any) -> Tenant:
        with transaction(engine) as conn:
            return tenants.create_tenant(conn, name or f"tenant-{next(_numbers)}", **limits)

    return make


@pytest.fixture
def tenant(make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant()


@pytest.fixture
def make_worker(engine: Engine) -> Callable[..., UUID]:
    """``make_worker(queues=(…))`` registers a worker and gives its id."""

    def make(queues: tuple[str, ...] = ("diffusion.generate",), name: str = "worker") -> UUID:
        info = workers.WorkerInfo(
            id=new_id(), name=name, hostname="host", pid=1, queues=queues, device={"kind": "cpu"}, version="test"
        )
        with transaction(engine) as conn:
            return workers.register(conn, info).id

    return make


@pytest.fixture
def make_idle(engine: Engine, make_worker: Callable[..., UUID]) -> Callable[..., UUID]:
    """``make_idle(queues=(…), **columns)``: a worker that is idle and looks for work."""

    def make(queues: tuple[str, ...] = ("diffusion.generate",), name: str = "worker", **columns: Any) -> UUID:
        worker_id = make_worker(queues, name)
        values = {"state": "idle", "looked_at": sa.func.now(), **columns}
        with transaction(engine) as conn:
            conn.execute(tables.workers.update().where(tables.workers.c.id == worker_id).values(**values))
        return worker_id

    return make


@pytest.fixture
def make_job(engine: Engine, tenant: Tenant) -> Callable[..., Job]:
    """``make_job(kind=…, **NewJob fields)`` queues a job of ``tenant``, or of ``tenant_id``."""

    def make(**values: Any) -> Job:
        defaults: dict[str, Any] = {
            "tenant_id": tenant.id,
            "kind": Kind.GENERATE,
            "family": Family.DIFFUSION,
            "model": "starter-diffusion@1",
            "spec": {"kind": "generate", "input": {"prompt": "a logo"}},
        }
        with transaction(engine) as conn:
            return queue.submit(conn, queue.NewJob(**{**defaults, **values}))

    return make


@pytest.fixture
def make_model(engine: Engine) -> Callable[..., ModelVersion]:
    """``make_model(name, tenant_id=None, **NewVersion fields)`` registers a version with one small made-up file."""

    def make(name: str = "small-model", **values: Any) -> ModelVersion:
        key = f"models/{secrets.token_hex(8)}"
        defaults: dict[str, Any] = {
            "name": name,
            "tenant_id": None,
            "family": Family.DIFFUSION,
            "architecture": "sd3",
            "files": [ModelFile(path="weights.safetensors", object_key=key, bytes=3, sha256="a" * 64)],
            "source": {"type": "starter"},
            "licence": "Apache-2.0",
            "parameters": SMALL,
        }
        with transaction(engine) as conn:
            return registry.register_version(conn, NewVersion(**{**defaults, **values}))

    return make


@pytest.fixture
def submit(make_job: Callable[..., Job]) -> Callable[..., Job]:
    """``submit("image", plan={…}, **fields of NewJob)``: a queued job for a handler of `worker_handlers`."""

    def make(do: str, *, plan: dict[str, Any] | None = None, **fields: Any) -> Job:
        return make_job(spec=worker_handlers.spec(do, **(plan or {})), **fields)

    return make


@pytest.fixture
def get_job(engine: Engine) -> Callable[[UUID], Job]:
    """``get_job(job_id)``: the row as it is now."""

    def get(job_id: UUID) -> Job:
        with transaction(engine) as conn:
            row = conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == job_id)).mappings().one()
        return Job.from_row(row)

    return get


@pytest.fixture
def ended(get_job: Callable[[UUID], Job], eventually: Callable[..., object]) -> Callable[..., Job]:
    """``ended(job_id, timeout=20)``: the job, once it has ended."""

    def wait(job_id: UUID, timeout: float = 20.0) -> Job:
        eventually(lambda: get_job(job_id).state.terminal, timeout, "the job has ended")
        return get_job(job_id)

    return wait


@pytest.fixture
def artifacts(engine: Engine) -> Callable[[UUID], list[Artifact]]:
    """``artifacts(job_id)``: what the job has published."""

    def find(job_id: UUID) -> list[Artifact]:
        with transaction(engine) as conn:
            return queue.artifacts_of(conn, [job_id]).get(job_id, [])

    return find


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """``start_python(name, "-m", "worker", settings=…, **variables)``: a process, killed at the latest after the test.

    Its log is ``<name>.log`` below ``tmp_path``.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str, settings: Settings, **variables: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **variables, **environment(settings)},
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks, without TLS."""
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def requests_of() -> Callable[[Client], list[str]]:
    """``requests_of(client)``: what it asks from now on, the object store too: ``["GET http://…/v1/jobs", …]``."""

    def note(client: Client) -> list[str]:
        asked: list[str] = []

        def hook(request: httpx.Request) -> None:
            asked.append(f"{request.method} {request.url.copy_with(query=None)}")

        for http in (client._http, client._plain):
            http.event_hooks = {"request": [hook]}
        return asked

    return note


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[bytes], Path]:
    """``saved(data)``: a file with this in it."""

    def save(data: bytes) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zip"
        path.write_bytes(data)
        return path

    return save


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that names it ends without temporary files, whatever goes wrong in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.iterdir()) == []
