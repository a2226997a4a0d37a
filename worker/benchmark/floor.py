"""The least time that a call can take: its floating-point operations over the device's peak.

No implementation is faster than the arithmetic it does. A measured time below this floor is a measuring error, for
instance a clock that was stopped while the GPU was still at work, and is reported as one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

#: Dense tensor-core peaks in TFLOP/s by the vendor's data sheets: (part of the device's name, 16 bit, TF32).
#: The first match counts. Floors need an upper bound: where variants differ the fastest one stands.
_DATA_SHEETS: Final[tuple[tuple[str, float, float], ...]] = (
    ("B200", 2500.0, 1250.0),
    ("H200", 989.5, 494.7),
    ("H100", 989.5, 494.7),
    ("A100", 312.0, 156.0),
    ("L40S", 362.1, 183.2),
    ("L40", 181.1, 90.5),
    ("L4", 121.0, 60.0),
    ("A10", 125.0, 62.5),
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
    ("RTX 4090", 330.3, 82.6),
    ("RTX 3090", 142.0, 35.6),
)

#: Edges of the square matrices whose products are timed where no data sheet says the peak, and times each. On a
#: CPU they are short and many, so that some find the cores free even while other processes work.
_EDGES: Final = (512, 1024)
_EDGES_GPU: Final = (4096, 8192)
_REPEATS: Final = 40
_REPEATS_GPU: Final = 10

#: A measured peak may fall short of the real one, which a floor must not: what is measured counts this many times.
_HEADROOM: Final = 2.0


DATA_SHEET: Final = "data sheet"
MEASURED: Final = "twice the best measured matrix product"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a device can do."""

    #: Floating-point operations a second that it cannot exceed.
    flops: float
    #: DATA_SHEET or MEASURED.
    source: str


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations (two a multiply-add) of matrix products, convolutions and attention in one call.

    Counted as they are dispatched, so that steps, guidance, text encoders and decoder are all in. What is not
    counted (norms, activations) makes the floor lower, never too high.
    """
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        call()
    return int(counter.get_total_flops())


def device_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """The most that a device does in a type: from the data sheet where the GPU is known, else measured."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, half, single in _DATA_SHEETS:
            if part in name:
                return Peak(flops=(single if dtype == torch.float32 else half) * 1e12, source=DATA_SHEET)
    return Peak(flops=_HEADROOM * _measured_peak(device, dtype), source=MEASURED)


def floor_seconds(flops: int, peak: Peak) -> float:
    """The least seconds for so many operations."""
    return flops / peak.flops


def _measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    best = 0.0
    edges, repeats = (_EDGES_GPU, _REPEATS_GPU) if device.type == "cuda" else (_EDGES, _REPEATS)
    for edge in edges:
        square = torch.rand(edge, edge, device=device, dtype=dtype)
        for _ in range(repeats):
            _wait(device)
            started = time.perf_counter()
            torch.mm(square, square)
            _wait(device)
            best = max(best, 2.0 * edge**3 / (time.perf_counter() - started))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _attention_flops(
    query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, out_val: Any = None, **__: Any
) -> int:
    count: Callable[..., int] = sdpa_flop_count
    return int(count(query, key, value))


#: torch counts its GPU attention kernels but not the one for the CPU.
_CPU_ATTENTION: Final[dict[Any, Any]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops  # noqa: SLF001 - an operator's name
}
