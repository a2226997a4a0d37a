"""When a delivery is tried again: eleven tries over three days. Pure."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

_MINUTE, _HOUR = 60.0, 3600.0
#: Seconds from each failed try to the next.
DELAYS = (
    5.0,
    _MINUTE,
    5 * _MINUTE,
    30 * _MINUTE,
    2 * _HOUR,
    5 * _HOUR,
    10 * _HOUR,
    14 * _HOUR,
    20 * _HOUR,
    24 * _HOUR,
)
#: How much longer a wait may become by chance, so that what failed together does not come back together.
JITTER = 0.2
#: The longest wait that a receiver may ask for.
LONGEST_RETRY_AFTER = 24 * _HOUR


def next_delay(tries: int, asked: float | None, jitter: float) -> float | None:
    """Seconds to wait after failed try number ``tries`` (from 1); None: it was the last.

    Args:
        tries: how many were made, this one included.
        asked: seconds that the receiver asked to wait, if it did; never shortens the wait.
        jitter: in [0, 1).
    """
    if tries > len(DELAYS):
        return None
    wait = DELAYS[tries - 1] * (1 + JITTER * jitter)
    return max(wait, min(asked or 0.0, LONGEST_RETRY_AFTER))


def read_retry_after(value: str | None, now: float) -> float | None:
    """Seconds that a ``Retry-After`` header asks for; None when it says nothing that can be understood.

    Args:
        value: a number of seconds, or a date as HTTP writes it.
        now: Unix seconds.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now) if text else None
    except (ValueError, OverflowError):
        return None
