"""What a training of a GAN says of itself while it runs."""

from __future__ import annotations

import time
from pathlib import Path

from worker.context import JobContext
from worker.families.gan.collapse import Check
from worker.families.gan.snapshots import Snapshot
from worker.families.gan.trainer import StepLosses, Trainer

#: Seconds between two reports: each is a row in Postgres.
EVERY_SECONDS = 5.0


class Report:
    """Metrics every few seconds and at the last step, every look of the watch, every snapshot."""

    def __init__(self, ctx: JobContext, trainer: Trainer, metric: str) -> None:
        self._ctx, self._trainer, self._metric = ctx, trainer, metric
        self._losses: list[StepLosses] = []
        self._since = time.monotonic()

    def step(self, losses: StepLosses) -> None:
        """To be called after each step."""
        self._ctx.progress(self._trainer.step_count, self._trainer.settings.steps, "training")
        self._losses.append(losses)
        seconds = time.monotonic() - self._since
        if seconds >= EVERY_SECONDS or self._trainer.step_count == self._trainer.settings.steps:
            self._say(seconds)

    def check(self, check: Check) -> None:
        """What the watch for mode collapse found."""
        found = check.measured
        self._ctx.metrics(
            {
                "step": check.step,
                "collapse_duplicates": found.duplicates,
                "collapse_spread": found.spread,
                "collapse_cosine": found.cosine,
                "collapse_vendi": found.vendi,
                "collapse_recall": found.recall,
                "collapse_strikes": check.strikes,
            }
        )
        if check.strikes:
            self._ctx.log(check.summary)

    def snapshot(self, snapshot: Snapshot, grid: Path, *, is_best: bool) -> None:
        """The distance of a snapshot, and its images."""
        self._ctx.metrics({"step": snapshot.step, "frechet_distance": snapshot.frechet})
        self._ctx.tracked_images("snapshot", [grid], snapshot.step)
        best = ", the best so far" if is_best else ""
        self._ctx.log(f"snapshot at step {snapshot.step}: {self._metric} {snapshot.frechet:.1f}{best}")

    def say(self, message: str) -> None:
        """Whatever else is worth telling."""
        self._ctx.log(message)

    def _say(self, seconds: float) -> None:
        """Mean losses and the pace since the last report."""
        count, trainer = len(self._losses), self._trainer
        penalties = [one.penalty for one in self._losses if one.penalty is not None]
        self._ctx.metrics(
            {
                "step": trainer.step_count,
                "kimg": round(trainer.images_seen / 1000, 3),
                "generator_loss": round(sum(one.generator for one in self._losses) / count, 6),
                "discriminator_loss": round(sum(one.discriminator for one in self._losses) / count, 6),
                "generator_learning_rate": trainer.learning_rate("generator"),
                "discriminator_learning_rate": trainer.learning_rate("discriminator"),
                "penalty": round(sum(penalties) / len(penalties), 6) if penalties else None,
                "augment_p": round(trainer.p, 6),
                "steps_per_second": round(count / seconds, 4) if seconds > 0 else None,
            }
        )
        self._losses.clear()
        self._since = time.monotonic()
