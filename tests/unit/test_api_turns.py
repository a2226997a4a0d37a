"""How many requests are worked on at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask

from api import turns
from api.turns import Permits, Turns


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


def test_so_many_may_wait_and_the_next_one_is_told_at_once() -> None:
    permits = Permits(2)
    with permits.permit() as first, permits.permit() as second, permits.permit() as third:
        assert (first, second, third) == (True, True, False)
        assert permits.taken == 2
    assert permits.taken == 0
    with permits.permit() as again:
        assert again
