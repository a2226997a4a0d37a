"""One call and the two moments around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float, float]:
    """What the call returns, when it began and when it had returned, in seconds since the epoch."""
    began = time.time()
    value = call()
    return value, began, time.time()
