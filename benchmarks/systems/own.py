"""Calotype itself: its API with validation, idempotency and tenancy, its workers with the stand-in for a model."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

import sqlalchemy as sa

import starter
from benchmarks import processes, services
from benchmarks.calls import Calls
from benchmarks.services import Stack
from benchmarks.standin import Plan
from benchmarks.systems import Observed, Submit, Submitted
from benchmarks.timing import timed
from calotype import registry, tables, tenants
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.jobs import TERMINAL, Family
from calotype.local.process import Process, free_port
from calotype.local.stack import TENSOR_ENVIRONMENT
from calotype.local.starter_assets import register_pipeline
from calotype.registry import ModelFile, NewVersion
from calotype.settings import Settings, environment
from calotype.tenants import Scope, Tenant
from calotype.workers import WorkerState

MODEL = "stand-in"
NOTHING: Mapping[str, str] = MappingProxyType({})
#: What the registry says of a model as small as the starter.
PARAMETERS = {
    "default_width": 64,
    "default_height": 64,
    "size_multiple": 8,
    "min_size": 32,
    "max_size": 128,
    "default_steps": 20,
    "max_steps": 100,
    "default_guidance_scale": 3.0,
    "max_text_tokens": 16,
}


class Calotype:
    """One API process; workers are added. Everything ends with ``parts``."""

    name = "Calotype"

    def __init__(self, stack: Stack, parts: ExitStack, database: str = services.DATABASE, **changes: Any) -> None:
        self.stack = stack
        settings = stack.settings if database == services.DATABASE else services.database(stack, database)
        self.settings: Settings = dataclasses.replace(settings, port=free_port(), **changes)
        self.engine = connect_engine(self.settings, application_name="bench")
        parts.callback(self.engine.dispose)
        self._parts = parts
        register_model(self.engine)
        self.tenant, self.key = self.add_tenant("bench")
        self.api = self._start("api", "api", ready=self._api_answers)

    def add_tenant(self, name: str, **limits: Any) -> tuple[Tenant, str]:
        """A tenant and a key of it."""
        with transaction(self.engine) as conn:
            tenant = tenants.create_tenant(conn, name, **limits)
            _, key = tenants.create_key(conn, tenant, scopes=tuple(Scope), name="bench")
        return tenant, key

    def calls(self, key: str | None = None) -> Calls:
        """A connection to the API."""
        return Calls(self.settings.port, {"Authorization": f"Bearer {key or self.key}"})

    def submitter(self, key: str | None = None) -> Submit:
        calls = self.calls(key)
        self._parts.callback(calls.close)

        def submit(plan: Plan) -> Submitted:
            headers = {"Idempotency-Key": secrets.token_hex(16)}
            answer, sent, accepted = timed(lambda: calls.post("/v1/jobs", request_body(plan), headers))
            return Submitted(answer.expect(202)["id"], sent, accepted)

        return submit

    def start_worker(self, name: str) -> Process:
        return self._start(name, "benchmarks.worker", name, ready=lambda: self._takes_jobs(name))

    def start_starter_worker(self, name: str) -> Process:
        """A worker with the real handler, for the model that ships; registers that first."""
        store, model = ObjectStore(self.settings), starter.DIFFUSION
        register_pipeline(self.engine, store, starter.diffusion_dir(), model.name, model.parameters)
        arguments = ("--queues", "diffusion.generate", "--name", name)
        return self._start(
            name, "worker", *arguments, ready=lambda: self._takes_jobs(name), variables=dict(TENSOR_ENVIRONMENT)
        )

    def start_reconciler(self) -> Process:
        return self._start("reconciler", "worker.reconciler", ready=lambda: True)

    def look(self, job_id: str) -> Observed:
        row = self.row(job_id)
        result: Mapping[str, Any] = row["result"] or {}
        running = row["started_at"].timestamp() if row["started_at"] is not None else None
        return Observed(row["state"] in set(TERMINAL), running, result.get("began"))

    def row(self, job_id: str) -> Mapping[Any, Any]:
        """A job's row as it is now."""
        with transaction(self.engine) as conn:
            return conn.execute(sa.select(tables.jobs).where(tables.jobs.c.id == UUID(job_id))).mappings().one()

    def _start(
        self,
        name: str,
        module: str,
        *arguments: str,
        ready: Callable[[], bool],
        variables: Mapping[str, str] = NOTHING,
    ) -> Process:
        variables = {**environment(self.settings), **variables}
        command = processes.module(self.stack, name, module, *arguments, variables=variables)
        return self._parts.enter_context(processes.started(command, ready))

    def _api_answers(self) -> bool:
        return processes.answers(f"http://127.0.0.1:{self.settings.port}/readyz")

    def _takes_jobs(self, name: str) -> bool:
        """Whether it is up. Where jobs wait it is busy from its first moment on."""
        workers, up = tables.workers, (WorkerState.IDLE, WorkerState.BUSY)
        found = sa.select(workers.c.id).where(
            workers.c.name == name, workers.c.state.in_(up), workers.c.retired_at.is_(None)
        )
        with transaction(self.engine) as conn:
            return conn.execute(found).first() is not None


def request_body(plan: Plan, *, num_images: int = 1, **fields: Any) -> dict[str, Any]:
    """The body of a submission that carries out ``plan``. The seed is drawn, so that no two jobs are the same."""
    return {
        "kind": "generate",
        "family": "diffusion",
        "model": MODEL,
        "input": {"prompt": plan.prompt(), "num_images": num_images},
        **fields,
    }


def starter_body(prompt: str, *, num_images: int = 1) -> dict[str, Any]:
    """The body of a submission to the model that ships."""
    return {
        "kind": "generate",
        "family": "diffusion",
        "model": starter.DIFFUSION_MODEL,
        "input": {"prompt": prompt, "num_images": num_images},
    }


def register_model(engine: sa.Engine) -> None:
    """Enter the stand-in into the registry, for every tenant; its one file is never fetched."""
    file = ModelFile(path="weights.safetensors", object_key=f"models/{uuid4().hex}", bytes=1, sha256="0" * 64)
    new = NewVersion(
        name=MODEL,
        tenant_id=None,
        family=Family.DIFFUSION,
        architecture="sd3",
        files=[file],
        source={"type": "starter"},
        licence="Apache-2.0",
        parameters=PARAMETERS,
    )
    with transaction(engine) as conn:
        registry.register_version(conn, new)
