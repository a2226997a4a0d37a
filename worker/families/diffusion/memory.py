"""The memory of the device: how much was used, and giving back what nothing refers to."""

from __future__ import annotations

import gc

import torch


def free_memory() -> None:
    """Return what nothing refers to any more to the device.

    To be called after the `except` block has ended: until then the exception's traceback keeps the tensors
    alive.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: by tensors on a GPU (since the last reset), by the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but on macOS


def reset_peak_memory(device: torch.device) -> None:
    """Begin to measure anew, where the device can: the peak of a process on a CPU only grows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def device_name(device: torch.device) -> str:
    """What a result says it was measured on: the GPU's name, or "cpu"."""
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else device.type
