"""The stand-in for a model: work of an exact duration, without tensors, the same for Calotype and for its peers.

What to do travels in the prompt as JSON, since both take a prompt.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long the work takes, in how many steps; it may be stopped between two steps."""

    seconds: float = 0.0
    steps: int = 1

    @classmethod
    def read(cls, prompt: str) -> Self:
        return cls(**json.loads(prompt))

    def prompt(self) -> str:
        return json.dumps(asdict(self))


def work(plan: Plan, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Do it; returns when the work began and ended by this machine's clock, in seconds since the epoch.

    Steps end at fixed points in time, so that the whole takes as long as it should however late a sleep returns.
    """
    began, start = time.time(), time.monotonic()
    for step in range(1, plan.steps + 1):
        time.sleep(max(0.0, start + plan.seconds * step / plan.steps - time.monotonic()))
        after_step()
    return {"began": began, "ended": time.time(), "seconds": time.monotonic() - start}
