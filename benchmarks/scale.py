"""How much is measured: a proof that it works, the usual amount, or the amounts that the targets speak of."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class Scale(StrEnum):
    """Tiny proves that a measurement runs; its numbers mean nothing."""

    TINY = "tiny"
    STANDARD = "standard"
    FULL = "full"

    def pick(self, tiny: T, standard: T, full: T) -> T:
        """The amount that belongs to this scale."""
        return {Scale.TINY: tiny, Scale.STANDARD: standard, Scale.FULL: full}[self]
