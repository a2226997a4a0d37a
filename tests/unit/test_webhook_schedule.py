"""When a delivery is tried again."""

from __future__ import annotations

from itertools import count, takewhile

import pytest

from calotype.webhooks.schedule import DELAYS, next_delay, read_retry_after


def test_a_delivery_is_tried_eleven_times_over_three_days() -> None:
    waits = list(takewhile(lambda wait: wait is not None, (next_delay(tries, None, 0.0) for tries in count(1))))
    assert waits == [5, 60, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert 3 * 86_400 < sum(waits) < 4 * 86_400  # type: ignore[arg-type]


def test_chance_only_lengthens_a_wait() -> None:
    assert next_delay(2, None, 0.999) == pytest.approx(72.0, abs=0.1)


@pytest.mark.parametrize(("asked", "wait"), [(None, 60), (1.0, 60), (3600.0, 3600), (1e9, 86_400)])
def test_a_receiver_may_ask_for_a_longer_wait_up_to_a_day(asked: float | None, wait: float) -> None:
    assert next_delay(2, asked, 0.0) == wait


def test_asking_for_a_wait_gives_no_try_beyond_the_last() -> None:
    assert next_delay(len(DELAYS) + 1, 10.0, 0.0) is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("-5", None),
        ("1e3", None),
        ("soon", None),
        ("9" * 400, None),
        ("Tue, 24 Nov 2026 12:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_a_retry_after_header_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    noon = 1_795_521_600.0
    assert read_retry_after(header, noon) == seconds
