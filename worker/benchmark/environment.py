"""What a measurement was made on: without it no number can be compared with another."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any, Final

import torch

from worker.device import describe_device

#: Packages whose versions change speed or pictures.
_PACKAGES: Final = ("torch", "diffusers", "transformers", "peft", "numpy")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Device, threads, system and versions, as JSON."""
    hardware = describe_device(device.type)
    return {
        "device": hardware["name"],
        "device_kind": device.type,
        "device_memory_bytes": hardware["memory_bytes"],
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
