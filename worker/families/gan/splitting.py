"""How a batch is computed in parts, and on several devices, with the gradient that it has as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Split:
    """A batch cut up by `x[first::stride]`, so that the discriminator's groups of images stay whole.

    Raises ValueError for devices among which the groups cannot be divided.
    """

    batch_size: int
    #: Images of a group over which the minibatch standard deviation is taken; 1: no network looks at more than one.
    group: int = 1
    #: Devices, and which of them this is.
    ranks: int = 1
    rank: int = 0
    #: Into how many parts the share of a device is cut.
    parts: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.group:
            raise ValueError(f"a batch of {self.batch_size} is not made of groups of {self.group}")
        if self.groups % (self.ranks * self.parts):
            raise ValueError(
                f"a batch of {self.batch_size} in groups of {self.group} cannot be divided among {self.ranks} devices "
                f"in {self.parts} parts each; take a batch_size that is a multiple of {self.group * self.ranks}"
            )

    @classmethod
    def of(cls, batch_size: int, most_in_group: int, *, ranks: int = 1, rank: int = 0) -> Self:
        """Whole batches, in groups as `append_minibatch_std` makes them of up to so many images."""
        group = max(size for size in range(1, min(most_in_group, batch_size) + 1) if batch_size % size == 0)
        return cls(batch_size=batch_size, group=group, ranks=ranks, rank=rank)

    @property
    def groups(self) -> int:
        return self.batch_size // self.group

    @property
    def micro_batch_size(self) -> int:
        """Images computed at once on a device."""
        return self.batch_size // (self.ranks * self.parts)

    def slices(self) -> Iterator[slice]:
        """Which images of the batch belong to each part of this device's share."""
        for part in range(self.parts):
            yield slice(self.rank + self.ranks * part, None, self.ranks * self.parts)

    def of_at_most(self, images: int) -> Self:
        """As fine that no more than so many images are computed at once; as fine as can be where that is not enough."""
        found = self
        while found.micro_batch_size > images and (finer := found.finer()) is not None:
            found = finer
        return found

    def finer(self) -> Self | None:
        """At most half as many images at once. None where there is one group in a part: fewer cannot be."""
        most = self.groups // self.ranks
        for parts in range(2 * self.parts, most + 1):
            if most % parts == 0:
                return replace(self, parts=parts)
        return None
