"""One thing that is timed of a GAN: its training or its sampling, at one size; and what was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal, Self

from calotype.gan_description import Architecture
from calotype.specs.gan_train import GanTrainInput
from calotype.submission import gan_train

What = Literal["sampling", "training"]

#: Widths of the networks as the documentation says to take them on a CPU: channel_base, channel_max.
CPU_WIDTHS: Final = (2048, 64)
#: Where the default course of augmentation ends.
AUGMENT_P: Final = 0.3


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a process of its own measures."""

    architecture: Architecture
    resolution: int
    what: What
    #: Images of a call, or of a step.
    batches: tuple[int, ...]
    #: Calls of each kind that are timed.
    rounds: int
    #: channel_base and channel_max.
    widths: tuple[int, int] = CPU_WIDTHS

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self:
        values = json.loads(line)
        return cls(**{**values, "batches": tuple(values["batches"]), "widths": tuple(values["widths"])})

    def spec(self) -> GanTrainInput:
        """A training job's input, completed as submission would."""
        channel_base, channel_max = self.widths
        given = GanTrainInput(
            dataset="logos",
            architecture=self.architecture,
            resolution=self.resolution,
            kimg=1,
            batch_size=self.batches[0],
            conditional=False,
            augment="ada",
            augment_p=AUGMENT_P,
            seed=0,
            output_model="measured",
            channel_base=channel_base,
            channel_max=channel_max,
        )
        return given.model_copy(update=gan_train.recipe(self.architecture, self.resolution, given))


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the process says. Times are medians, in seconds an image."""

    #: By images of a call.
    seconds: Mapping[int, float]
    #: Of the same network without filters around its nonlinearities; empty where it has none, and in training.
    unfiltered: Mapping[int, float]
    #: Floating-point operations an image.
    flops: float
    #: What this machine made of a product of matrices meanwhile, floating-point operations a second.
    machine: float
    #: Bytes at most resident, beyond those of the process before it built anything.
    peak: int
    #: Operations in double precision that nobody asked for, by name.
    doubles: tuple[str, ...]
    threads: int

    @property
    def floor(self) -> float:
        """Seconds an image that its arithmetic takes at the machine's speed."""
        return self.flops / self.machine

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Self:
        values = json.loads(line)
        by_batch = {
            name: {int(batch): seconds for batch, seconds in values[name].items()} for name in ("seconds", "unfiltered")
        }
        return cls(**{**values, **by_batch, "doubles": tuple(values["doubles"])})
