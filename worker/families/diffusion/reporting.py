"""What a training says of itself while it runs."""

from __future__ import annotations

import time

from worker.context import JobContext
from worker.families.diffusion.trainer import Trainer

#: Seconds between two reports: each is a row in Postgres.
EVERY_SECONDS = 5.0


class Report:
    """Metrics every few seconds, and at the last step; `step` is called after each."""

    def __init__(self, ctx: JobContext, trainer: Trainer) -> None:
        self._ctx = ctx
        self._trainer = trainer
        self._losses: list[float] = []
        self._since = time.monotonic()

    def step(self, step: int, loss: float) -> None:
        self._losses.append(loss)
        seconds = time.monotonic() - self._since
        if seconds >= EVERY_SECONDS or step == self._trainer.settings.steps:
            self._say(step, seconds)

    def _say(self, step: int, seconds: float) -> None:
        """The mean loss and the pace since the last report; the rate of the step that was just made."""
        self._ctx.metrics(
            {
                "step": step,
                "loss": round(sum(self._losses) / len(self._losses), 6),
                "learning_rate": self._trainer.settings.learning_rate_at(step - 1),
                "steps_per_second": round(len(self._losses) / seconds, 4) if seconds > 0 else None,
            }
        )
        self._losses.clear()
        self._since = time.monotonic()
