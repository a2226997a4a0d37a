"""How long a retry waits."""

from __future__ import annotations

import pytest

from calotype.queue import backoff


@pytest.mark.parametrize(("attempt", "longest"), [(1, 10.0), (2, 20.0), (5, 160.0), (30, 3600.0)])
def test_a_backoff_doubles_up_to_an_hour_and_spreads_over_its_second_half(attempt: int, longest: float) -> None:
    assert backoff(attempt, 10.0, 0.0) == longest / 2
    assert longest * 0.99 < backoff(attempt, 10.0, 0.999) <= longest
