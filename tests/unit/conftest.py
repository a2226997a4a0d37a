"""Golden numbers that several unit tests compare with; `tests/golden/README.md` says where they come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from worker.benchmark.quality import Features

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> dict[str, Features]:
    """Features of some image sets, by name: `real`, and sets that are compared with it."""
    import numpy as np
    from safetensors.numpy import load_file

    arrays = load_file(GOLDEN / "metrics.features.safetensors")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


@pytest.fixture(scope="session")
def references() -> dict[str, Any]:
    """What the reference implementations say of these sets, by name and metric."""
    values: dict[str, Any] = json.loads((GOLDEN / "metrics.json").read_text())["values"]
    return values
