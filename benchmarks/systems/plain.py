"""The baseline of :mod:`benchmarks.baseline`: Flask, Celery and the ORM, on the same Postgres and Redis."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from benchmarks import processes
from benchmarks.baseline import configuration
from benchmarks.baseline.models import Job
from benchmarks.calls import Calls
from benchmarks.services import Stack
from benchmarks.standin import Plan
from benchmarks.systems import Observed, Submit, Submitted
from benchmarks.timing import timed
from calotype.local.process import Process, free_port

DATABASE = "baseline"
#: Of Redis; Calotype's is number 0.
REDIS_DATABASE = 1


class Baseline:
    """One API process; workers are added. Everything ends with ``parts``."""

    name = "Flask + Celery"

    def __init__(self, stack: Stack, parts: ExitStack) -> None:
        stack.postgres.ensure_database(DATABASE)
        self._stack = stack
        self._parts = parts
        self._port = free_port()
        self._variables = {
            configuration.DATABASE_URL: stack.postgres.url(DATABASE),
            configuration.BROKER_URL: stack.redis.url.removesuffix("0") + str(REDIS_DATABASE),
            configuration.PORT: str(self._port),
        }
        self._engine = sa.create_engine(stack.postgres.url(DATABASE))
        parts.callback(self._engine.dispose)
        self.api = self._start(
            "baseline", "benchmarks.baseline", ready=lambda: processes.answers(f"http://127.0.0.1:{self._port}/")
        )

    def start_worker(self, name: str) -> Process:
        """A Celery worker as its manual starts one, with one child as Calotype's workers run one job at a time."""
        ready = self._stack.folder / f"{name}.ready"
        return self._start(name, "benchmarks.baseline.worker", name, str(ready), ready=ready.exists)

    def calls(self) -> Calls:
        """A connection to the API."""
        return Calls(self._port, {})

    def submitter(self) -> Submit:
        calls = self.calls()
        self._parts.callback(calls.close)

        def submit(plan: Plan) -> Submitted:
            body = {
                "kind": "generate",
                "family": "diffusion",
                "model": "stand-in",
                "input": {"prompt": plan.prompt(), "num_images": 1},
            }
            answer, sent, accepted = timed(lambda: calls.post("/jobs", body))
            return Submitted(answer.expect(202)["id"], sent, accepted)

        return submit

    def look(self, job_id: str) -> Observed:
        with Session(self._engine) as session:
            job = session.get_one(Job, UUID(job_id))
        running = job.started_at.timestamp() if job.started_at is not None else None
        return Observed(job.finished_at is not None, running, (job.result or {}).get("began"))

    def _start(self, name: str, module: str, *arguments: str, ready: Callable[[], bool]) -> Process:
        command = processes.module(self._stack, name, module, *arguments, variables=self._variables, grace=2.0)
        return self._parts.enter_context(processes.started(command, ready))
