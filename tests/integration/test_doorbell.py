"""Ringing never delays or fails, whatever the broker does."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest
import redis

from calotype import doorbell as bells
from calotype.doorbell import JOBS_CHANNEL, Doorbell
from calotype.ids import new_id
from calotype.local.process import free_port
from calotype.settings import Settings


@pytest.fixture
def doorbell(settings: Settings) -> Iterator[Doorbell]:
    bell = Doorbell(settings)
    yield bell
    bell.close()


@pytest.fixture
def black_hole(settings: Settings) -> Iterator[Settings]:
    """A broker that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield dataclasses.replace(settings, broker_url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0")


def _waiting(settings: Settings, queue: str) -> int:
    assert settings.broker_url is not None
    with redis.Redis.from_url(settings.broker_url) as client:
        return int(client.llen(queue))  # type: ignore[arg-type]


def test_a_ring_arrives_as_a_message_in_the_queue_of_its_family_and_kind(
    doorbell: Doorbell, settings: Settings, eventually: Callable[..., object]
) -> None:
    doorbell.ring("diffusion.train")
    eventually(lambda: _waiting(settings, "diffusion.train") == 1)
    assert _waiting(settings, "diffusion.generate") == 0


def test_the_broker_is_said_to_be_there_or_not(doorbell: Doorbell, settings: Settings) -> None:
    assert doorbell.ping()
    away = Doorbell(dataclasses.replace(settings, broker_url=f"redis://127.0.0.1:{free_port()}/0"))
    assert not away.ping()
    away.close()


class Listener:
    """Hears what is published about jobs."""

    def __init__(self, settings: Settings) -> None:
        self._client = redis.Redis.from_url(settings.broker_url or "")
        self._channel = self._client.pubsub()
        self._channel.subscribe(JOBS_CHANNEL)
        self._next("subscribe")

    def job(self) -> UUID:
        return UUID(self._next("message").decode())

    def silent(self) -> bool:
        return self._channel.get_message(ignore_subscribe_messages=True, timeout=0.3) is None

    def close(self) -> None:
        self._channel.close()
        self._client.close()

    def _next(self, kind: str) -> bytes:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = self._channel.get_message(timeout=1)
            if message is not None and message["type"] == kind:
                return message["data"] if kind == "message" else b""
        raise AssertionError(f"no {kind} within 30 s")


@pytest.fixture
def listener(settings: Settings) -> Iterator[Listener]:
    made = Listener(settings)
    yield made
    made.close()


def test_an_announced_job_is_published(doorbell: Doorbell, listener: Listener) -> None:
    job_id = new_id()
    doorbell.announce(job_id)
    assert listener.job() == job_id


def test_announcements_of_a_job_that_nobody_could_send_become_one(
    settings: Settings, listener: Listener, black_hole: Settings
) -> None:
    bell = Doorbell(black_hole)
    one, two = new_id(), new_id()
    for _ in range(50):
        bell.announce(one)
        bell.announce(two)
    # The broker comes back, for the same thread and what it kept.
    with bells.redis_client(settings) as bell._redis:
        assert {listener.job(), listener.job()} == {one, two}
        assert listener.silent()
        bell.close()


def test_announcing_to_a_broker_that_never_answers_returns_at_once_and_keeps_little(
    black_hole: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bells, "MAX_ANNOUNCED", 100)
    bell = Doorbell(black_hole)
    began = time.monotonic()
    for _ in range(1000):
        bell.announce(new_id())
    assert time.monotonic() - began < 1.0
    assert len(bell._jobs) <= 100
    bell.close(timeout=0.1)


def test_ringing_a_broker_that_never_answers_returns_at_once(black_hole: Settings) -> None:
    bell = Doorbell(black_hole)
    began = time.monotonic()
    for _ in range(1000):
        bell.ring("diffusion.generate")
    assert time.monotonic() - began < 0.5
    bell.close(timeout=0.1)


def test_rings_that_an_outage_swallowed_are_sent_once_when_the_broker_is_back(
    settings: Settings, eventually: Callable[..., object]
) -> None:
    port = free_port()
    bell = Doorbell(dataclasses.replace(settings, broker_url=f"redis://127.0.0.1:{port}/0"))
    for _ in range(50):
        bell.ring("diffusion.generate")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(4)
        listener.settimeout(20)
        connection, _ = listener.accept()
        connection.close()
    bell.close(timeout=0.1)
