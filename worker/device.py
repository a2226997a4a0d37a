"""Which device the worker computes on. torch is imported when first needed, not before."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.errors import SettingsError

if TYPE_CHECKING:
    import torch


@cache
def torch_device(setting: str) -> torch.device:
    """The device for `CALOTYPE_DEVICE`: "auto" is the first GPU if there is one, else the CPU.

    Raises SettingsError when a GPU is demanded and there is none.
    """
    import torch

    if setting == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if setting == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"CALOTYPE_DEVICE is cuda, but torch {torch.__version__} finds no GPU here. "
            "Check the driver and that torch is built for CUDA, or set it to auto or cpu."
        )
    return torch.device("cuda:0" if setting == "cuda" else setting)


def describe_device(setting: str) -> dict[str, Any]:
    """What a worker says of its hardware: `kind` ("cpu" or "cuda"), `name`, `memory_bytes`, `torch` (its version)."""
    # Importing torch takes seconds; a worker that is told to use the CPU need not wait for it to introduce itself.
    if setting != "cpu" and torch_device(setting).type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(torch_device(setting))
        name, kind, memory = properties.name, "cuda", properties.total_memory
    else:
        name, kind, memory = _processor_name(), "cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"kind": kind, "name": name, "memory_bytes": memory, "torch": _torch_version()}


def _torch_version() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
