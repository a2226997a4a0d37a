"""The API dies between the commit of a job and the ring for it: the job is there, and runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from calotype.jobs import State
from tests.faults.accounting import Accounts
from tests.faults.processes import LISTENING, Processes, Running, answers, url_of

Eventually = Callable[..., Any]
#: So long that no worker looks by itself while a test runs.
NEVER = 600.0


@dataclasses.dataclass(frozen=True)
class Orphan:
    """A job whose API was killed after its commit; the request that made it; the API that serves again."""

    job_id: UUID
    api: Running
    body: dict[str, Any]
    headers: dict[str, str]


@pytest.fixture
def orphan(
    api: Callable[..., Running],
    http: httpx.Client,
    accounts: Accounts,
    request_body: Callable[..., dict[str, Any]],
    eventually: Eventually,
    tmp_path: Path,
) -> Callable[[], Orphan]:
    """``orphan()`` submits a job to an API that is killed before it has rung for it."""

    def make() -> Orphan:
        server = api("--die-once", str(tmp_path / "died"))
        body, headers = request_body(), {"Idempotency-Key": "once"}
        with pytest.raises(httpx.TransportError):
            http.post(f"{url_of(server)}/v1/jobs", json=body, headers=headers)
        assert (tmp_path / "died").exists()
        [job] = accounts.jobs().values()
        eventually(lambda: answers(server), 30.0)
        return Orphan(job.id, server, body, headers)

    return make


def test_a_job_whose_api_was_killed_before_it_rang_is_rung_for_by_the_reconciler(
    processes: Processes, orphan: Callable[[], Orphan], accounts: Accounts, eventually: Eventually
) -> None:
    worker = processes.worker(idle_poll_seconds=NEVER)
    eventually(lambda: worker.says(LISTENING), 30.0)
    made = orphan()
    assert accounts.jobs()[made.job_id].state is State.QUEUED
    processes.reconciler()
    accounts.settle([made.job_id])


def test_a_job_whose_api_was_killed_before_it_rang_is_found_by_a_worker_that_looks_by_itself(
    processes: Processes, orphan: Callable[[], Orphan], accounts: Accounts, eventually: Eventually
) -> None:
    worker = processes.worker(idle_poll_seconds=1.0)
    eventually(lambda: worker.says(LISTENING), 30.0)
    accounts.settle([orphan().job_id])


def test_a_client_that_repeats_the_request_gets_the_job_that_the_killed_api_made(
    processes: Processes,
    orphan: Callable[[], Orphan],
    http: httpx.Client,
    accounts: Accounts,
    eventually: Eventually,
) -> None:
    worker = processes.worker(idle_poll_seconds=NEVER)
    eventually(lambda: worker.says(LISTENING), 30.0)
    made = orphan()
    answer = http.post(f"{url_of(made.api)}/v1/jobs", json=made.body, headers=made.headers)
    assert (answer.status_code, answer.json()["id"]) == (202, str(made.job_id))
    # The repetition rings as well.
    accounts.settle([made.job_id])


def test_an_api_killed_under_load_makes_one_job_of_each_request_that_is_repeated(
    processes: Processes,
    api: Callable[..., Running],
    http: httpx.Client,
    accounts: Accounts,
    request_body: Callable[..., dict[str, Any]],
) -> None:
    processes.worker()
    server = api()
    port = int(server.command.environment["CALOTYPE_PORT"])
    made = set()
    for number in range(60):
        if number % 15 == 7:
            server.kill()
            server = api(port=port)
        body, headers = request_body(), {"Idempotency-Key": f"request-{number}"}
        for _ in range(2):
            # The second is the client's own repetition, as if it had not heard the first answer.
            answer = http.post(f"{url_of(server)}/v1/jobs", json=body, headers=headers)
            assert answer.status_code == 202, answer.text
            made.add(answer.json()["id"])
    assert len(made) == 60
    accounts.settle([job_id for job_id in accounts.jobs() if str(job_id) in made])
