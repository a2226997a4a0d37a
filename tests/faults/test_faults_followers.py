"""Equal jobs in flight, of which one runs for all: what befalls that one does not befall the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from calotype.jobs import State
from tests.faults.accounting import Accounts
from tests.faults.processes import Processes, Running, post, url_of

Eventually = Callable[..., Any]


@pytest.fixture
def equals(
    api: Callable[..., Running], http: httpx.Client, request_body: Callable[..., dict[str, Any]], tmp_path: Path
) -> tuple[str, list[UUID]]:
    """Four equal jobs, and the address of the API that made them; they run until `go` is there."""
    server = api()
    body = request_body("until", path=tmp_path / "go", began=tmp_path / "began")
    return url_of(server), [post(http, server, body)[0] for _ in range(4)]


def test_followers_of_a_job_whose_worker_is_killed_get_the_result_of_its_second_run(
    processes: Processes,
    equals: tuple[str, list[UUID]],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    _, (leader, *followers) = equals
    processes.reconciler()
    victim = processes.worker("victim")
    eventually((tmp_path / "began").exists, 30.0)
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir")
    done = accounts.settle([leader, *followers], attempts={leader: 2, **dict.fromkeys(followers, 0)}, reruns=1)
    assert {done[one].result["cached_from"] for one in followers} == {str(leader)}  # type: ignore[index]
    assert [accounts.begun(one) for one in followers] == [[], [], []]


def test_followers_of_a_job_that_fails_for_good_do_not_fail_with_it(
    processes: Processes,
    api: Callable[..., Running],
    http: httpx.Client,
    request_body: Callable[..., dict[str, Any]],
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    server = api()
    body = request_body("until", path=tmp_path / "go", began=tmp_path / "began")
    leader, _ = post(http, server, {**body, "max_attempts": 1})
    follower, _ = post(http, server, body)
    processes.reconciler()
    victim = processes.worker("victim")
    eventually((tmp_path / "began").exists, 30.0)
    # It had one attempt, and its worker was lost in it.
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir")
    done = accounts.settle([leader, follower], states=(State.SUCCEEDED, State.FAILED))
    assert [done[one].state for one in (leader, follower)] == [State.FAILED, State.SUCCEEDED]


def test_followers_of_a_canceled_job_get_their_result_though_its_worker_is_killed(
    processes: Processes,
    equals: tuple[str, list[UUID]],
    http: httpx.Client,
    accounts: Accounts,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    url, (leader, *followers) = equals
    processes.reconciler()
    victim = processes.worker("victim")
    eventually((tmp_path / "began").exists, 30.0)
    assert http.post(f"{url}/v1/jobs/{leader}/cancel").status_code == 200
    victim.kill()
    (tmp_path / "go").touch()
    processes.worker("heir")
    done = accounts.settle([leader, *followers], states=(State.SUCCEEDED, State.CANCELED), attempts=range(2), reruns=0)
    assert [done[one].state for one in (leader, *followers)] == [State.CANCELED, *[State.SUCCEEDED] * 3]
    assert sum(bool(accounts.begun(one)) for one in followers) == 1
