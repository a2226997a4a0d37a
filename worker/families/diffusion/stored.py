"""A complete model version as a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch

_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16}


def save_full_version(transformer: Any, base: Path, directory: Path) -> None:
    """Write `base` with another transformer to `directory`; weights keep the precision that they are stored
    in there.

    The other components are copied as files: reading and writing them again could only change them.
    """
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("transformer"))
    dtype = stored_dtype(base / "transformer")
    trained_in = transformer.dtype
    transformer.to(dtype).save_pretrained(directory / "transformer", safe_serialization=True)
    transformer.to(trained_in)
    # The configuration is the same, but for the path of this machine that diffusers would note in it.
    shutil.copyfile(base / "transformer" / "config.json", directory / "transformer" / "config.json")


def stored_dtype(component: Path) -> torch.dtype:
    """The precision of a component's safetensors, by the first tensor in half precision; else fp32."""
    weights = min(component.glob("*.safetensors"))
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in _DTYPES:
            return _DTYPES[entry["dtype"]]
    return torch.float32
