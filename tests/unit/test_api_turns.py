"""How many requests are worked on at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from uuid import UUID, uuid4

import pytest
from flask import Flask, request

from api import turns
from api.resources import events
from api.turns import Permits, Turns
from calotype.settings import Settings


class Gauge:
    """How many were inside at the same time, at most."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1


@pytest.fixture
def make_app() -> Callable[..., Flask]:
    """``make_app(turns, view)``"""

    def make(own: Turns, view: Callable[[], str]) -> Flask:
        app = Flask("test")
        turns.install(app, own)
        app.get("/")(view)
        return app

    return make


def test_no_more_work_at_once_than_there_are_turns(make_app: Callable[..., Flask]) -> None:
    working = Gauge()

    def work() -> str:
        with working:
            threading.Event().wait(0.05)
        return "done"

    app = make_app(Turns(2), work)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: app.test_client().get("/").text, range(8)))
    assert answers == ["done"] * 8
    assert working.most == 2


def test_whoever_waits_lets_others_have_the_turn(make_app: Callable[..., Flask]) -> None:
    own, everybody_waits = Turns(1), threading.Barrier(5)

    def wait() -> str:
        with own.aside():
            everybody_waits.wait(30)
        return "done"

    app = make_app(own, wait)
    with ThreadPoolExecutor(5) as pool:
        # With one turn they would never come together if a waiting one kept it.
        assert list(pool.map(lambda _: app.test_client().get("/").text, range(5))) == ["done"] * 5


def test_clients_that_come_to_wait_leave_the_other_turns_to_those_who_work(make_app: Callable[..., Flask]) -> None:
    own, reading, waiting = Turns(16), Gauge(), Gauge()

    def work() -> str:
        with waiting if "wait" in request.args else reading:
            threading.Event().wait(0.05)
        return "done"

    app = make_app(own, work)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda path: app.test_client().get(path).text, ["/?wait=5"] * 12 + ["/"] * 12))
    assert answers == ["done"] * 24
    assert waiting.most == 2
    assert reading.most > 2


def test_the_view_of_event_streams_is_the_one_whose_requests_come_to_wait() -> None:
    assert f"{events.blueprint.name}.{events.list_events.__name__}" == turns.EVENTS


def test_a_request_that_fails_gives_its_turn_back(make_app: Callable[..., Flask]) -> None:
    def fail() -> str:
        raise RuntimeError("no")

    app = make_app(Turns(1), fail)
    for _ in range(3):
        assert app.test_client().get("/").status_code == 500


def test_a_stream_takes_a_turn_for_a_moment() -> None:
    own = Turns(1)
    for _ in range(3):
        with own.turn():
            pass


def take(permits: Permits, tenant: UUID, wanted: int, until: ExitStack) -> int:
    """How many of the permits that ``tenant`` wants it gets."""
    return sum(until.enter_context(permits.permit(tenant)) for _ in range(wanted))


def test_so_many_may_wait_and_the_next_one_is_told_at_once() -> None:
    permits, tenant = Permits(2), uuid4()
    with ExitStack() as waiting:
        assert take(permits, tenant, 3, waiting) == 2
        assert permits.taken == 2
    assert permits.taken == 0
    with permits.permit(tenant) as again:
        assert again


def test_a_thousand_clients_of_one_tenant_may_wait_at_a_process() -> None:
    with ExitStack() as waiting:
        assert take(Permits(Settings().api_waiters), uuid4(), 1_000, waiting) == 1_000


def test_a_tenant_that_takes_what_it_can_leaves_some_to_each_of_many_others() -> None:
    permits, greedy = Permits(1152), uuid4()
    with ExitStack() as waiting:
        assert take(permits, greedy, 2_000, waiting) == 1_008
        assert [take(permits, uuid4(), 1, waiting) for _ in range(100)] == [1] * 100
        assert take(permits, greedy, 1, waiting) == 0


def test_of_tenants_that_all_want_many_each_comes_to_have_as_many_as_the_next() -> None:
    permits, tenants = Permits(150), [uuid4(), uuid4()]
    held: dict[UUID, list[ExitStack]] = {tenant: [] for tenant in tenants}
    for tenant in tenants * 200:
        # One that waited goes, and two come.
        if held[tenant]:
            held[tenant].pop().close()
        for _ in range(2):
            came = ExitStack()
            if came.enter_context(permits.permit(tenant)):
                held[tenant].append(came)
    first, second = (len(held[tenant]) for tenant in tenants)
    assert abs(first - second) <= 7 and first + second > 130
