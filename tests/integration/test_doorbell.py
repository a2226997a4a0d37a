"""Ringing never delays or fails, whatever the broker does."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from calotype.doorbell import Doorbell
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
