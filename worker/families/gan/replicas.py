"""One training on several devices: each process computes its share of every batch, and all take the same step.

Everything random is drawn for the whole batch from the same generator in every process (see `trainer.py`), so that
gradients are all that has to travel. The first process leads: what its trainer does it announces, and the others, in
`follow`, do the same. Steps of two processes on a CPU are tested; on several GPUs it has not been run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from accelerate.utils import broadcast
from torch import Tensor

from calotype.errors import JobFailed

if TYPE_CHECKING:
    from accelerate import Accelerator

    from worker.families.gan.trainer import Trainer

Command = Literal["step", "raise_augmentation", "load"]


class Replicas(Protocol):
    """The processes that train together."""

    @property
    def count(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def announce(self, command: Command, argument: str | None = None) -> None:
        """Says what the leading process does next; nothing in the others."""

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        """Like `add_up`, for many tensors of a device at once."""


class Alone:
    """A single process."""

    count = 1
    rank = 0

    def announce(self, command: Command, argument: str | None = None) -> None:
        pass

    def add_up(self, value: Tensor) -> Tensor:
        return value

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        pass


class Accelerated:
    """The processes that an `Accelerator` knows, over its backend."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

    def announce(self, command: Command, argument: str | None = None) -> None:
        if self.rank == 0:
            # As letters: torch's own way to send objects would pickle them.
            letters = torch.tensor(list(json.dumps([command, argument]).encode()), device=self._accelerator.device)
            broadcast(torch.tensor(len(letters), device=self._accelerator.device))
            broadcast(letters)

    def hear(self) -> tuple[Command, str | None]:
        """What the leading process does next."""
        count = broadcast(torch.tensor(0, device=self._accelerator.device))
        letters = broadcast(torch.zeros(int(count), dtype=torch.int64, device=self._accelerator.device))
        command, argument = json.loads(bytes(letters.tolist()))
        return command, argument

    def add_up(self, value: Tensor) -> Tensor:
        # `reduce` may work in place.
        total: Tensor = self._accelerator.reduce(value.clone(), reduction="sum")
        return total

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        if not values:
            return
        # One message for all: small tensors would cost a round trip each.
        whole = self.add_up(torch.cat([value.flatten() for value in values]))
        start = 0
        for value in values:
            value.copy_(whole[start : start + value.numel()].view_as(value))
            start += value.numel()


def follow(trainer: Trainer, replicas: Accelerated) -> None:
    """Do what the leading process does, until this process is ended from outside."""
    while True:
        command, argument = replicas.hear()
        try:
            if command == "step":
                trainer.step()
            elif command == "raise_augmentation":
                trainer.raise_augmentation()
            elif command == "load":
                trainer.load(Path(argument or ""))
        except (JobFailed, OSError, ValueError, KeyError):
            # The leading process met the same, and decides what follows from it.
            continue
