"""Which image sizes a model can make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from calotype.errors import FieldError, Invalid


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model's limits, in pixels."""

    default_width: int
    default_height: int
    #: Width and height must be whole multiples of it.
    multiple: int
    least: int
    most: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Self:
        """From a model version's parameters; what is missing is as for Stable Diffusion 3.5."""
        return cls(
            default_width=int(parameters.get("default_width", 1024)),
            default_height=int(parameters.get("default_height", 1024)),
            multiple=int(parameters.get("size_multiple", 16)),
            least=int(parameters.get("min_size", 256)),
            most=int(parameters.get("max_size", 2048)),
        )

    def check(self, side: int, loc: tuple[str | int, ...]) -> None:
        """Raises Invalid with code ``unsupported_size`` and the nearest sizes when the model cannot do ``side``."""
        if self.least <= side <= self.most and side % self.multiple == 0:
            return
        near = self.nearest(side)
        detail = (
            f"this model makes multiples of {self.multiple} from {self.least} to {self.most} pixels, got {side}; "
            f"nearest: {' or '.join(str(one) for one in near)}"
        )
        raise Invalid(errors=[FieldError(loc=loc, msg=detail)], code="unsupported_size")

    def nearest(self, side: int) -> list[int]:
        """The one or two possible sizes next to ``side``."""
        first = -(-self.least // self.multiple) * self.multiple
        last = self.most // self.multiple * self.multiple
        below = min(max(side // self.multiple * self.multiple, first), last)
        above = min(max(-(-side // self.multiple) * self.multiple, first), last)
        return sorted({below, above})
