"""One training on several devices: each process computes its share of every batch, and all take the same step.

Everything random is drawn for the whole batch from the same generator in every process (see `trainer.py`), so that
gradients are all that has to travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


class Replicas(Protocol):
    """The processes that train together."""

    @property
    def count(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def add_up(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        """Like `add_up`, for many tensors of a device at once."""


class Alone:
    """A single process."""

    count = 1
    rank = 0

    def add_up(self, value: Tensor) -> Tensor:
        return value

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        pass


class Accelerated:
    """The processes of an `accelerate launch`, over its backend."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.count: int = accelerator.num_processes
        self.rank: int = accelerator.process_index

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
