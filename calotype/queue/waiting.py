"""How long a job waits after a failure."""

from __future__ import annotations


def backoff(attempt: int, first_seconds: float, jitter: float) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (from 1): doubling, at most an hour.

    ``jitter`` in [0, 1) spreads retries that failed together over half to all of the wait.
    """
    wait = min(first_seconds * 2.0 ** (attempt - 1), 3600.0)
    return float(wait * (0.5 + jitter / 2))
