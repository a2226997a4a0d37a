"""What is counted and timed beside the calls of a GAN: operations, their precision, and the machine's own speed."""

from __future__ import annotations

import inspect
import math
import statistics
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

#: Where a few numbers an image are exact on purpose: what augmentation draws, and the signs that it adapts to.
_EXACT_ON_PURPOSE: Final = ("worker.families.gan.augment.", "worker.families.gan.ada")
#: Numbers an image there: of a transform's matrix.
_FEW: Final = 16
#: Side of the matrices whose product is timed.
PRODUCT_SIDE: Final = 1024


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in a call, a multiply-add as two."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops}) as mode:
        call()
    total: int = mode.get_total_flops()
    return total


def _backward_flops(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """Either gradient of a convolution takes as many products as the convolution.

    PyTorch's own count of the gradient by the weights takes a grouped convolution for a whole one.
    """
    places = x_shape[2:] if transposed else grad_shape[2:]
    return 2 * x_shape[0] * math.prod(places) * math.prod(weight_shape) * sum(wanted[:2])


class DoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes operations that read or give double precision, apart from the few numbers an image that are meant to be
    exact; `batch` is how many images a call has."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most_meant = batch * _FEW
        #: Names of the operations, in their order.
        self.accidental: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        exact = [leaf.numel() for leaf in leaves if leaf.dtype in (torch.float64, torch.complex128)]
        if exact and not (max(exact) <= self._most_meant and _is_on_purpose()):
            self.accidental.append(str(func))
        return result


def _is_on_purpose() -> bool:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_EXACT_ON_PURPOSE):
            return True
        frame = frame.f_back
    return False


class MachineSpeed:
    """What this machine's library makes of a product of two matrices, between the calls that are measured: whatever
    disturbs the ones disturbs the others."""

    def __init__(self) -> None:
        self._matrices = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE)
        self._seconds: list[float] = []
        self._product()

    def sample(self) -> None:
        began = time.perf_counter()
        self._product()
        self._seconds.append(time.perf_counter() - began)

    def flops_per_second(self) -> float:
        """By the median product."""
        return 2 * PRODUCT_SIDE**3 / statistics.median(self._seconds)

    def _product(self) -> Tensor:
        return self._matrices[0] @ self._matrices[1]
