"""The second peer: procrastinate, a queue in Postgres alone. It has no HTTP side, so that a job enters by a call."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import ExitStack
from typing import Any

import sqlalchemy as sa

from benchmarks import processes
from benchmarks.services import Stack
from benchmarks.standin import Plan, work
from benchmarks.systems import Observed, Submit, Submitted
from benchmarks.timing import timed
from calotype.local.process import Process

PACKAGE = "procrastinate"
TASK = "run_job"
DATABASE = "procrastinate"
#: In the environment of its worker.
DATABASE_URL = "PROCRASTINATE_DATABASE_URL"
ABSENT = "procrastinate, the second peer, was left out: the package is not installed (pip install 'calotype[bench]')."
STARTED = """
SELECT j.status, (SELECT max(e.at) FROM procrastinate_events e WHERE e.job_id = j.id AND e.type = 'started') AS started
FROM procrastinate_jobs j WHERE j.id = :id
"""


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


class Procrastinate:
    """Jobs are deferred by this process through one kept connection; workers are processes of their own."""

    name = "procrastinate (no HTTP)"

    def __init__(self, stack: Stack, parts: ExitStack) -> None:
        stack.postgres.ensure_database(DATABASE)
        self._stack = stack
        self._parts = parts
        self._url = stack.postgres.url(DATABASE).replace("+psycopg", "")
        self._engine = sa.create_engine(stack.postgres.url(DATABASE))
        parts.callback(self._engine.dispose)
        self._app = make_app(self._url, asynchronous=False)
        parts.enter_context(self._app.open())
        self._app.schema_manager.apply_schema()

    def start_worker(self, name: str) -> Process:
        ready = self._stack.folder / f"{name}.ready"
        command = processes.module(
            self._stack,
            name,
            "benchmarks.systems.peer_worker",
            name,
            str(ready),
            variables={DATABASE_URL: self._url},
            grace=2.0,
        )
        return self._parts.enter_context(processes.started(command, ready.exists))

    def submitter(self) -> Submit:
        task = self._app.tasks[TASK]

        def submit(plan: Plan) -> Submitted:
            job_id, sent, accepted = timed(lambda: task.defer(prompt=plan.prompt()))
            return Submitted(str(job_id), sent, accepted)

        return submit

    def look(self, job_id: str) -> Observed:
        with self._engine.connect() as conn:
            row = conn.execute(sa.text(STARTED), {"id": int(job_id)}).one()
        ended = row.status in ("succeeded", "failed", "cancelled", "aborted")
        return Observed(ended, row.started.timestamp() if row.started is not None else None, None)


def make_app(url: str, *, asynchronous: bool) -> Any:
    """A procrastinate.App with the one task, for a worker (asynchronous) or for a client."""
    # By name, since the package need not be there and its types are then unknown.
    package: Any = importlib.import_module(PACKAGE)
    connector = package.PsycopgConnector if asynchronous else package.SyncPsycopgConnector
    app = package.App(connector=connector(conninfo=url))
    app.task(name=TASK)(run_job)
    return app


def run_job(prompt: str) -> None:
    """The one task."""
    work(Plan.read(prompt))
