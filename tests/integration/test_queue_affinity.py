"""Jobs whose model is loaded may pass the one whose turn it is: for so long and so many at most."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

import pytest
from queue_floor import GENERATE, Floor
from sqlalchemy import Engine

from calotype import pauses, queue
from calotype.jobs import Job
from calotype.scheduling import Affinity
from calotype.tenants import Tenant

WARM, COLD = "warm@1#a", "cold@1#b"


@pytest.fixture
def floor(engine: Engine, make_worker: Callable[..., UUID]) -> Floor:
    return Floor(
        engine, queue.Claimant(worker_id=make_worker(), queues=(GENERATE,), lease_seconds=600.0, loaded=[WARM])
    )


@pytest.fixture
def owner(make_tenant: Callable[..., Tenant]) -> Tenant:
    return make_tenant()


def _claims(floor: Floor, affinity: Affinity, count: int, seconds: float) -> list[Job]:
    """So many claims of a worker, one in so many seconds, as the drain loop makes them."""
    taken = []
    for number in range(count):
        claimed = floor.claim(may_pass=affinity.may_pass(number * seconds))
        affinity.note(number * seconds, passed=claimed.passed)
        taken += claimed.jobs
    return taken


@pytest.mark.parametrize(
    ("longest_wait", "longest_streak", "passing"), [(1000.0, 3, 3), (25.0, 100, 3), (1000.0, 0, 0)]
)
def test_a_job_for_another_model_is_passed_over_for_so_long_and_so_often_at_most(
    floor: Floor, owner: Tenant, longest_wait: float, longest_streak: int, passing: int
) -> None:
    (cold,) = floor.submit(owner, model_key=COLD)
    warm = floor.submit(owner, 6, model_key=WARM)
    affinity = Affinity(longest_wait=longest_wait, longest_streak=longest_streak)
    taken = [job.id for job in _claims(floor, affinity, 5, seconds=10.0)]
    in_order = [job.id for job in warm]
    assert taken == [*in_order[:passing], cold.id, *in_order[passing:4]]


def test_after_the_job_that_waited_others_may_be_passed_over_again(floor: Floor, owner: Tenant) -> None:
    cold = [job.id for job in floor.submit(owner, 2, model_key=COLD)]
    floor.submit(owner, 6, model_key=WARM)
    affinity = Affinity(longest_wait=1000.0, longest_streak=2)
    taken = [job.id for job in _claims(floor, affinity, 6, seconds=1.0)]
    assert [taken.index(job) for job in cold] == [2, 5]


def test_a_job_that_needs_no_model_or_a_loaded_one_is_nobodys_turn_taken(floor: Floor, owner: Tenant) -> None:
    plain = floor.submit(owner)
    warm = floor.submit(owner, model_key=WARM)
    for expected in (*plain, *warm):
        claimed = floor.claim(may_pass=True)
        assert ([job.id for job in claimed.jobs], claimed.passed) == ([expected.id], False)


def test_nothing_is_passed_over_when_no_job_for_a_loaded_model_waits(floor: Floor, owner: Tenant) -> None:
    (cold,) = floor.submit(owner, model_key=COLD)
    claimed = floor.claim(may_pass=True)
    assert ([job.id for job in claimed.jobs], claimed.passed) == ([cold.id], False)


def test_who_goes_out_of_turn_is_charged_and_keeps_its_limit(
    floor: Floor, owner: Tenant, make_tenant: Callable[..., Tenant]
) -> None:
    passing = make_tenant(max_running=1)
    floor.submit(passing)
    # It has used more than the other, so that it is not its turn.
    floor.owners(1)
    floor.submit(owner, 2, model_key=COLD)
    floor.submit(passing, 3, model_key=WARM)
    first = floor.claim(may_pass=True)
    assert first.passed and first.jobs[0].tenant_id == passing.id
    assert floor.share(passing)["vtime"] > 100 and floor.share(passing)["running"] == 1
    second = floor.claim(may_pass=True)
    assert not second.passed and second.jobs[0].tenant_id == owner.id


def test_a_paused_queue_is_not_opened_by_a_loaded_model(floor: Floor, owner: Tenant) -> None:
    floor.submit(owner, model_key=WARM)
    floor.do(pauses.pause, GENERATE)
    assert floor.claim(may_pass=True).jobs == ()
