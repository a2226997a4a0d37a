"""Waiting out an outage of Postgres or of the object store without giving up the work in hand."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from calotype.errors import DependencyDown

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 5.0


def patiently(action: Callable[[], T], *, what: str, pulse: Callable[[], None], seconds: float = float("inf")) -> T:
    """The result of `action`, repeated while it raises DependencyDown, for at most `seconds`.

    `pulse` is called between tries (at least every LONGEST_WAIT_SECONDS) and may raise to give up. Waits grow and are
    jittered, so that the workers of a cluster do not come back all at once.
    """
    deadline = time.monotonic() + seconds
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return action()
        except DependencyDown as exc:
            if time.monotonic() + wait >= deadline:
                raise
            log.warning(
                "waiting for a dependency", extra={"what": what, "reason": exc.detail, "seconds": round(wait, 1)}
            )
        pulse()
        time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing
        wait = min(wait * 2, LONGEST_WAIT_SECONDS)
