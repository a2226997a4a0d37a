"""The way of a training: steps, and at their times looks of the watch, snapshots and checkpoints; and its end, which
may come early.

Whatever is due at a step is made after it and before the next. A training that is interrupted in between and resumed
makes up for what is missing: so it is the same as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

from torch import nn

from calotype.errors import JobFailed
from worker.families.gan.collapse import MIN_SAMPLES, Action, Check, CollapseWatch
from worker.families.gan.data import bad_input
from worker.families.gan.evaluation import Evaluation
from worker.families.gan.snapshots import COLUMNS, ROWS, Snapshot, Snapshots, grid_of
from worker.families.gan.trainer import Diverged, StepLosses, Trainer

Reason = Literal["mode_collapse", "numerical_error"]

_TITLES: dict[Reason, str] = {"mode_collapse": "The generator collapsed", "numerical_error": "The training diverged"}
#: Columns of a grid of classes at most.
_MOST_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """When what is due."""

    snapshot_every: int
    checkpoint_every: int
    #: Images a side of a Fréchet distance, and of a look of the watch.
    frechet_samples: int
    watch_samples: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Why a training ended early."""

    reason: Reason
    step: int
    detail: str


class Listener(Protocol):
    """Who is told what happens."""

    def step(self, losses: StepLosses) -> None: ...

    def check(self, check: Check) -> None: ...

    def snapshot(self, snapshot: Snapshot, grid: Path, *, is_best: bool) -> None: ...

    def say(self, message: str) -> None: ...


class Course:
    """A training from where its state is to its end. `stopped` says why it ended early, if it did."""

    def __init__(
        self,
        trainer: Trainer,
        evaluation: Evaluation,
        snapshots: Snapshots,
        watch: CollapseWatch | None,
        plan: Timetable,
        listener: Listener,
        *,
        pulse: Callable[[], None] = lambda: None,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """`pulse` is called between steps and may raise to stop there; `checkpoint` is called when one is due.

        Raises JobFailed `bad_input` where the watch has too few images to look at.
        """
        self.trainer, self.evaluation, self.snapshots, self.watch = trainer, evaluation, snapshots, watch
        self.stopped: Stop | None = None
        self._plan, self._listener, self._pulse, self._checkpoint = plan, listener, pulse, checkpoint
        #: The step whose checkpoint is stored.
        self.saved_at = trainer.step_count
        self._watch_samples = min(plan.watch_samples, len(trainer.images))
        if watch is not None and self._watch_samples < MIN_SAMPLES:
            raise bad_input(
                f"The watch for mode collapse compares at least {MIN_SAMPLES} images, and the dataset has "
                f"{len(trainer.images)}. Set mode_collapse to null, or use a larger dataset."
            )

    def run(self) -> None:
        """To the last step, or to where it must stop; then the networks are those of the best snapshot.

        Raises JobFailed `mode_collapse` or `numerical_error` where it must stop and no snapshot is any good, and
        whatever `pulse` raises; then the state is that of a complete step, and can be saved.
        """
        try:
            while self._look() and self.trainer.step_count < self.trainer.settings.steps:
                self._pulse()
                self._listener.step(self.trainer.step())
        except Diverged as failure:
            self._stop("numerical_error", failure.detail)
        self.snapshots.restore_best(self._networks())

    def state_dict(self) -> dict[str, Any]:
        """What is neither the trainer's state nor in the snapshots' folder, JSON-able."""
        watch = None if self.watch is None else self.watch.state_dict()
        return {"watch": watch, "snapshots": self.snapshots.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken; the trainer's state and the folder are there already."""
        if self.watch is not None:
            self.watch.load_state_dict(state["watch"])
        self.snapshots.load_state_dict(state["snapshots"])
        self.saved_at = self.trainer.step_count

    def _look(self) -> bool:
        """Do what is due after the step that was made; False where the training is to stop."""
        step = self.trainer.step_count
        if step > 0 and self._watch_is_due(step):
            self._watch_now(step)
        if self.stopped is not None:
            return False
        if step > self.snapshots.last_step and (step % self._plan.snapshot_every == 0 or self._is_last(step)):
            self._take_snapshot(step)
        if step % self._plan.checkpoint_every == 0 and step != self.saved_at and not self._is_last(step):
            self._checkpoint()
            self.saved_at = step
        return True

    def _is_last(self, step: int) -> bool:
        return step >= self.trainer.settings.steps

    def _watch_is_due(self, step: int) -> bool:
        if self.watch is None or not self.watch.is_due(step):
            return False
        return not self.watch.checks or self.watch.checks[-1].step < step

    def _watch_now(self, step: int) -> None:
        if self.watch is None:
            return
        generated = self.evaluation.generated(self.trainer.ema.model, self._watch_samples)
        check = self.watch.check(step, generated, self.evaluation.real(self._watch_samples))
        self._listener.check(check)
        if check.action is Action.STOP:
            self._stop("mode_collapse", check.summary)
        elif check.action is Action.RAISE_AUGMENTATION:
            p = self.trainer.raise_augmentation()
            self._listener.say(f"images are augmented with a probability of at least {p:.2f} from now on")

    def _take_snapshot(self, step: int) -> None:
        evaluation, generator, count = self.evaluation, self.trainer.ema.model, self._plan.frechet_samples
        classes = min(_MOST_CLASSES, len(self.trainer.images.labels))
        grid = grid_of(evaluation.class_by_class(generator, ROWS, classes or COLUMNS), classes or COLUMNS)
        snapshot = Snapshot(
            step=step,
            kimg=self.trainer.images_seen / 1000,
            frechet=evaluation.frechet(generator, count),
            suspicious=bool(self.watch and self.watch.checks and self.watch.checks[-1].strikes),
        )
        path = self.snapshots.add(snapshot, grid, self._networks())
        self._listener.snapshot(snapshot, path, is_best=self.snapshots.best is snapshot)

    def _stop(self, reason: Reason, detail: str) -> None:
        best = self.snapshots.best
        if best is None or (reason == "mode_collapse" and best.suspicious):
            self._fail(reason, detail)
        self.stopped = Stop(reason=reason, step=self.trainer.step_count, detail=detail)
        self._listener.say(f"stopped at step {self.trainer.step_count}: {detail} Step {best.step}'s snapshot is kept.")

    def _fail(self, reason: Reason, detail: str) -> NoReturn:
        raise JobFailed(
            reason,
            _TITLES[reason],
            f"{detail} No good snapshot had been taken: nothing is kept. Try smaller learning rates, a larger "
            "r1_gamma, more images or snapshots earlier (snapshot_every).",
            retryable=False,
        )

    def _networks(self) -> dict[str, nn.Module]:
        trainer = self.trainer
        return {
            "averaged": trainer.ema.model,
            "generator": trainer.generator,
            "discriminator": trainer.discriminator,
        }
