"""The watch for mode collapse: does the generator still make many different images?

Every so many steps it compares the features of generated images with those of a real sample of the same size, and
acts when several checks in a row look like a collapse. Five numbers of each check become the curve, each beside what
the real sample itself scores:

========== ========================================================= ===================
sign       what the number says                                      raised when
========== ========================================================= ===================
duplicates share of images with a near-copy among the others         above real + 0.3
spread     variance of the features over that of the real images     below 0.2
cosine     mean cosine of two images, seen from the real mean        above real + 0.1
vendi      how many different images there are, seen from there      below 0.6 of real
recall     share of the real images that lie among generated ones    below 0.3 of real
========== ========================================================= ===================

A check looks like a collapse when one of the first two signs and one of the last three are raised. The last three
alone do not do: they are disturbed by *where* the images are, so that blurred images raise them, however varied. The
first two look only at how far the images are from each other. Measured with 120 logos of 64 × 64 pixels against 120
others, EfficientNet-lite0, lowest and highest of ten draws:

================================= ========== ========= ========== ========= ========= ==========
set                               duplicates spread    cosine     Vendi     recall    suspicious
================================= ========== ========= ========== ========= ========= ==========
other logos (diverse)             .00–.02    .91–1.02  .01–.02    51–54     .67–.79   0 of 10
made by the starter diffusion     .00        .99–1.07  .16–.19    36–39     .27–.41   0 of 10
logos blurred by 2 px             .00–.03    .91–1.00  .19–.22    36–38     .12–.22   0 of 10
logos blurred by 4 px             .00–.05    .48–.56   .48–.53    11–13     .00–.02   0 of 10
a quarter are near-copies of one  .25–.27    .86–1.00  .06–.09    30–33     .67–.82   0 of 10
35 % are near-copies of one       .35–.37    .79–.95   .10–.15    22–24     .66–.82   10 of 10
half are near-copies of one       .50–.52    .67–.86   .22–.27    12–14     .61–.83   10 of 10
near-copies of four               1.00       .40–.76   .34–.55    4.1–4.9   .00       10 of 10
near-copies of one                1.00       .03–.06   .92–.96    1.3–1.6   .00       10 of 10
colour noise                      1.00       .04       .97        1.2       .00       10 of 10
the real sample itself            .00–.02    1         −.01       52–57     .67–.92
================================= ========== ========= ========== ========= ========= ==========

(Near-copies of one: 60 images a side.) With 64 or 32 images the sets fall on the same sides, except that a quarter of
32 is at the limit.

A young generator makes noise, which is all alike, so the watch arms itself: at the first check that looks healthy, or
at the latest after `warmup_steps`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Final, Self

from worker.benchmark.diversity import (
    PRECISION_NEIGHBOURS,
    duplicate_radius,
    duplicate_rate,
    mean_cosine,
    prdc,
    spread,
    vendi_score,
)
from worker.benchmark.quality import Features

#: Fewest samples a side: half of the real ones must have more than PRECISION_NEIGHBOURS neighbours.
MIN_SAMPLES: Final = 16

#: Where each sign is raised; see the module's table.
DUPLICATES_ABOVE_REAL: Final = 0.3
SPREAD_LEAST: Final = 0.2
COSINE_ABOVE_REAL: Final = 0.1
VENDI_SHARE_OF_REAL: Final = 0.6
RECALL_SHARE_OF_REAL: Final = 0.3


class Action(StrEnum):
    """What a training does about a collapse."""

    #: Says so and goes on.
    WARN = "warn"
    #: Ends with the last good snapshot.
    STOP = "stop"
    #: Raises the probability of augmentation, since a discriminator that overfits is a usual cause.
    RAISE_AUGMENTATION = "raise_augmentation"


class Sign(StrEnum):
    """A number that is out of its limits."""

    DUPLICATES = "duplicates"
    SPREAD = "spread"
    COSINE = "cosine"
    VENDI = "vendi"
    RECALL = "recall"


#: Signs of images that are near each other, whatever they look like; one of them is needed for a collapse.
_ALIKE: Final = frozenset({Sign.DUPLICATES, Sign.SPREAD})


@dataclass(frozen=True, kw_only=True)
class CollapseSettings:
    """When to look, how long to wait, what to do. Raises ValueError for numbers below their least."""

    action: Action = Action.WARN
    #: Training steps between two checks; at least 1.
    every_steps: int = 100
    #: Checks in a row that must look like a collapse before the action; at least 1.
    patience: int = 3
    #: From this step on a check counts even when none has looked healthy yet.
    warmup_steps: int = 1000

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.patience < 1 or self.warmup_steps < 0:
            raise ValueError("every_steps and patience are at least 1, warmup_steps is at least 0")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers of one check; those of the real sample itself begin with `real_`."""

    duplicates: float
    real_duplicates: float
    #: The real sample's is 1.
    spread: float
    cosine: float
    real_cosine: float
    vendi: float
    real_vendi: float
    recall: float
    #: Of one half of the real sample by the other.
    real_recall: float


@dataclass(frozen=True, kw_only=True)
class Check:
    """One look at the generator. `as_dict` is what the event stream and the result hold."""

    step: int
    #: Images a side.
    samples: int
    measured: Measured
    signs: tuple[Sign, ...]
    #: Whether the signs together look like a collapse.
    suspicious: bool
    #: Suspicious checks in a row up to this one; 0 while the watch is not armed.
    strikes: int
    #: What the training has to do now; None: go on.
    action: Action | None

    @property
    def summary(self) -> str:
        """One sentence for a log line, an event or the reason why a training stopped."""
        found = self.measured
        return (
            f"{self._verdict()} (real images in brackets): {found.duplicates:.0%} of {self.samples} images have a "
            f"near-copy among them ({found.real_duplicates:.0%}), Vendi score {found.vendi:.1f} "
            f"({found.real_vendi:.1f}), mean cosine {found.cosine:.2f} ({found.real_cosine:.2f}), recall "
            f"{found.recall:.2f} ({found.real_recall:.2f}), spread {found.spread:.2f} (1)."
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able and flat, numbers to six digits; `from_dict` reads it."""
        numbers = {name: float(f"{value:.6g}") for name, value in asdict(self.measured).items()}
        return {
            "step": self.step,
            "samples": self.samples,
            **numbers,
            "signs": [str(sign) for sign in self.signs],
            "suspicious": self.suspicious,
            "strikes": self.strikes,
            "action": None if self.action is None else str(self.action),
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Self:
        """Reads what `as_dict` gave."""
        return cls(
            step=row["step"],
            samples=row["samples"],
            measured=Measured(**{one.name: row[one.name] for one in fields(Measured)}),
            signs=tuple(Sign(sign) for sign in row["signs"]),
            suspicious=row["suspicious"],
            strikes=row["strikes"],
            action=None if row["action"] is None else Action(row["action"]),
        )

    def _verdict(self) -> str:
        if not self.suspicious:
            return f"At step {self.step} the generator's images are varied"
        return f"At step {self.step}, for {self.strikes} checks in a row, the generator looks collapsed"


class CollapseWatch:
    """Checks in order, and how many in a row were suspicious. Its state survives a resume."""

    def __init__(self, settings: CollapseSettings) -> None:
        self.settings = settings
        self._checks: list[Check] = []
        self._armed = False

    def is_due(self, step: int) -> bool:
        """Whether a check belongs after this step; steps count from 1."""
        return step % self.settings.every_steps == 0

    def check(self, step: int, generated: Features, real: Features) -> Check:
        """Compares features of generated images with those of as many real ones, (N, D) both, in random order.

        The action is asked for at every `patience`-th suspicious check in a row: once, and again for as long as
        nothing helps. Raises ValueError for fewer than MIN_SAMPLES, unequal numbers and features that are not
        finite.
        """
        measured = measure(generated, real)
        signs = raised(measured)
        suspicious = is_suspicious(signs)
        self._armed = self._armed or not suspicious or step >= self.settings.warmup_steps
        before = self._checks[-1].strikes if self._checks else 0
        strikes = before + 1 if suspicious and self._armed else 0
        done = Check(
            step=step,
            samples=len(generated),
            measured=measured,
            signs=signs,
            suspicious=suspicious,
            strikes=strikes,
            action=self.settings.action if strikes and strikes % self.settings.patience == 0 else None,
        )
        self._checks.append(done)
        return done

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks so far, oldest first."""
        return tuple(self._checks)

    def result(self) -> dict[str, Any]:
        """What the job's result says of the watch: settings, steps at which it acted, the curve."""
        settings = {**asdict(self.settings), "action": str(self.settings.action)}
        acted = [check.step for check in self._checks if check.action is not None]
        return {**settings, "acted_at": acted, "checks": [check.as_dict() for check in self._checks]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed watch needs, JSON-able."""
        return {"armed": self._armed, "checks": [check.as_dict() for check in self._checks]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self._armed = state["armed"]
        self._checks = [Check.from_dict(row) for row in state["checks"]]


def measure(generated: Features, real: Features) -> Measured:
    """The numbers of one check; see :class:`Measured`. Raises ValueError as :meth:`CollapseWatch.check` does."""
    if len(generated) != len(real):
        raise ValueError(f"compares sets of one size, not {len(generated)} generated with {len(real)} real images")
    if len(real) < MIN_SAMPLES:
        raise ValueError(f"needs {MIN_SAMPLES} images a side, has {len(real)}")
    mean, radius, half = real.mean(axis=0), duplicate_radius(real), len(real) // 2
    return Measured(
        duplicates=duplicate_rate(generated, radius),
        real_duplicates=duplicate_rate(real, radius),
        spread=spread(generated, real),
        cosine=mean_cosine(generated, mean),
        real_cosine=mean_cosine(real, mean),
        vendi=vendi_score(generated, mean),
        real_vendi=vendi_score(real, mean),
        recall=prdc(generated, real, neighbours=PRECISION_NEIGHBOURS).recall,
        real_recall=prdc(real[:half], real[half:], neighbours=PRECISION_NEIGHBOURS).recall,
    )


def raised(found: Measured) -> tuple[Sign, ...]:
    """The signs whose numbers are out of their limits."""
    out = {
        Sign.DUPLICATES: found.duplicates > found.real_duplicates + DUPLICATES_ABOVE_REAL,
        Sign.SPREAD: found.spread < SPREAD_LEAST,
        Sign.COSINE: found.cosine > found.real_cosine + COSINE_ABOVE_REAL,
        Sign.VENDI: found.vendi < VENDI_SHARE_OF_REAL * found.real_vendi,
        Sign.RECALL: found.recall < RECALL_SHARE_OF_REAL * found.real_recall,
    }
    return tuple(sign for sign, is_out in out.items() if is_out)


def is_suspicious(signs: tuple[Sign, ...]) -> bool:
    """Whether images are near each other and the set has lost variety by another measure too."""
    return not _ALIKE.isdisjoint(signs) and not _ALIKE.issuperset(signs)
