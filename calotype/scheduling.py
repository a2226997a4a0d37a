"""Which job next.

A queued job has a static rank: the time from which it may run, minus a head start for each step of priority. Lower
goes first. Because the rank does not change while the job waits, waiting longer is the same as moving up (aging),
and an index can hold the order; computing the age in ORDER BY cannot use one.
"""

from __future__ import annotations

from datetime import timedelta

#: Lowest to highest.
PRIORITIES = range(10)
DEFAULT_PRIORITY = 5
#: A job of one priority step more overtakes jobs that have waited up to this much longer.
PRIORITY_STEP = timedelta(seconds=60)


def head_start(priority: int) -> timedelta:
    """How much earlier than its ``available_at`` a job of this priority ranks."""
    return priority * PRIORITY_STEP
