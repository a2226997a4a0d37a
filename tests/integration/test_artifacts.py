"""The object store: what is missing, and what is down."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import minio.time
import pytest

from calotype import artifacts
from calotype.artifacts import ObjectStore
from calotype.errors import DependencyDown, NotFound
from calotype.settings import Settings


def test_an_object_that_is_not_there_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound):
        store.get_bytes("tenants/a/one.png")
    with pytest.raises(NotFound):
        store.stat("tenants/a/one.png")


def test_a_missing_bucket_is_a_service_to_mend_and_not_an_object_that_is_gone(settings: Settings) -> None:
    astray = ObjectStore(dataclasses.replace(settings, s3_bucket="nobody-made-this"))
    with pytest.raises(DependencyDown, match="CALOTYPE_S3_BUCKET"):
        astray.get_bytes("tenants/a/one.png")
    with pytest.raises(DependencyDown, match="CALOTYPE_S3_BUCKET"):
        list(astray.list_keys("tenants/"))


# --- A clock that is wrong ---


@pytest.fixture
def turn_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """``turn_clock(off)``: what this process and the store's client take for the time is off by so much."""

    def turn(off: timedelta) -> None:
        class Turned(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + off

        monkeypatch.setattr(artifacts, "datetime", Turned)
        monkeypatch.setattr(minio.time, "utcnow", lambda: Turned.now(UTC))

    return turn


@pytest.mark.parametrize("hours", [1, -1], ids=["fast", "slow"])
def test_a_machine_whose_clock_is_wrong_reads_and_writes_as_any_other(
    settings: Settings, store: ObjectStore, turn_clock: Callable[[timedelta], None], tmp_path: Path, hours: int
) -> None:
    large = tmp_path / "large"
    # Sent in several parts.
    large.write_bytes(bytes(itertools.islice(itertools.cycle(range(256)), 6 << 20)))
    turn_clock(timedelta(hours=hours))

    for action in (
        lambda off: off.put_bytes("a/one png", b"one"),
        lambda off: off.put_file("a/large", large),
        lambda off: off.ping(),
    ):
        # The first request of each learns what time it is.
        action(ObjectStore(settings))
    off = ObjectStore(settings)
    assert off.get_bytes("a/one png") == b"one"
    off.fetch_file("a/large", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == large.read_bytes()
    assert {found.key for found in off.list_keys("a/")} == {"a/one png", "a/large"}
    off.delete(["a/one png"])
    with pytest.raises(NotFound):
        off.stat("a/one png")


def test_a_clock_that_is_set_right_again_is_believed_again(
    settings: Settings, store: ObjectStore, turn_clock: Callable[[timedelta], None]
) -> None:
    turn_clock(timedelta(hours=1))
    off = ObjectStore(settings)
    off.put_bytes("one", b"1")
    turn_clock(timedelta(0))
    off.put_bytes("two", b"2")
    turn_clock(timedelta(hours=-1))
    assert off.get_bytes("two") == b"2"


def test_the_store_of_these_tests_refuses_what_a_wrong_clock_has_signed(
    settings: Settings, store: ObjectStore, turn_clock: Callable[[timedelta], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "SKEW", timedelta(days=1))
    turn_clock(timedelta(hours=1))
    with pytest.raises(DependencyDown):
        ObjectStore(settings).put_bytes("one", b"1")
