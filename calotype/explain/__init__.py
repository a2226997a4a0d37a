"""Why a job waits, when it will start, and what one would cost."""

from __future__ import annotations

from calotype.explain.explaining import Explanation, Start, explain
from calotype.explain.forecast import Interval
from calotype.explain.quoting import Answered, Quote, quote
from calotype.explain.reasons import Code, Reason

__all__ = ["Answered", "Code", "Explanation", "Interval", "Quote", "Reason", "Start", "explain", "quote"]
