"""The clock and the memory meter.

A GPU works on after a call has returned, so that a clock is only stopped after the device has been waited for; and
first calls pay for what later ones find ready, so that calls before the measurement warm it up.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import torch

T = TypeVar("T")

#: Calls before the measurement, at each batch size: the second one runs with every kernel chosen and loaded.
WARMUP_CALLS: Final = 2

#: Below this many calls a 99th percentile rests on fewer than ten of them and is called an estimate.
P99_CALLS: Final = 1000


@dataclass(frozen=True)
class Stopwatch:
    """Times calls on a device that may work asynchronously."""

    #: Waits until the device has nothing left to do.
    synchronize: Callable[[], None]
    #: Seconds from any origin.
    now: Callable[[], float] = time.perf_counter

    @classmethod
    def on(cls, device: torch.device) -> Stopwatch:
        """The stopwatch for a device."""
        if device.type == "cuda":
            return cls(lambda: torch.cuda.synchronize(device))
        return cls(_nothing_to_wait_for)

    def time(self, call: Callable[[], T]) -> tuple[T, float]:
        """The value of a call and its seconds: from an idle device to an idle device."""
        self.synchronize()
        started = self.now()
        value = call()
        self.synchronize()
        return value, self.now() - started


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The calls at one batch size, in seconds. Every image of a batch waits for its whole call."""

    batch_size: int
    calls: int
    mean: float
    fastest: float
    p50: float
    p90: float
    p95: float
    p99: float
    #: Whether too few calls stand behind the p99 to claim it.
    p99_is_estimate: bool
    images_per_second: float


def summarize(batch_size: int, seconds: Sequence[float]) -> Latency:
    """Percentiles (linear interpolation) of timed calls that made `batch_size` images each; ValueError if none."""
    if not seconds:
        raise ValueError("no call was timed")
    p50, p90, p95, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 95, 99]))
    return Latency(
        batch_size=batch_size,
        calls=len(seconds),
        mean=float(np.mean(seconds)),
        fastest=float(min(seconds)),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_is_estimate=len(seconds) < P99_CALLS,
        images_per_second=batch_size * len(seconds) / float(sum(seconds)),
    )


class MemoryMeter(Protocol):
    """Bytes that a contender needs beyond what was in use when the meter was made."""

    #: What is counted: "cuda_allocated", "process_rss" or "process_rss_lifetime".
    kind: str

    def reset(self) -> None:
        """Begin a new peak."""

    def peak(self) -> int:
        """The most since the last reset, above the level at the start."""


def memory_meter(device: torch.device) -> MemoryMeter:
    """A meter that starts now: drop what the contender shall not be charged for before."""
    gc.collect()
    return CudaMemory(device) if device.type == "cuda" else ProcessMemory()


class CudaMemory:
    """Memory that tensors occupy on a GPU, by torch's own count."""

    kind = "cuda_allocated"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.empty_cache()
        self._before = torch.cuda.memory_allocated(device)

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before


class ProcessMemory:
    """Resident memory of this process. Linux can restart the high-water mark; elsewhere it only grows."""

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._status, self._clear = proc / "status", proc / "clear_refs"
        _return_free_heap()
        self.reset()
        self._before = self._resident("VmRSS") if self.kind == "process_rss" else _lifetime_peak()

    def reset(self) -> None:
        try:
            # 5 resets VmHWM to the present VmRSS (proc(5)).
            self._clear.write_text("5")
            self.kind = "process_rss"
        except OSError:
            self.kind = "process_rss_lifetime"

    def peak(self) -> int:
        now = self._resident("VmHWM") if self.kind == "process_rss" else _lifetime_peak()
        return max(0, now - self._before)

    def _resident(self, field: str) -> int:
        for line in self._status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._status} has no {field}")


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def _return_free_heap() -> None:
    """Give freed heap back to the system, or a later contender would be measured inside an earlier one's leavings."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _nothing_to_wait_for() -> None:
    """A CPU has finished when the call returns."""
