"""Running the project's own packages as programs: `python -m api` and its like, wherever the user is."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent.parent)


def module_argv(module: str, *arguments: str) -> list[str]:
    """The command line of one of our packages."""
    # -P: a file `api.py` or a folder `worker` where the user happens to be must not be taken for ours.
    return [sys.executable, "-P", "-m", module, *arguments]


def module_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment to go with it: finds the packages of a checkout too, and does not buffer output."""
    environment = {**inherited, "PYTHONUNBUFFERED": "1"}
    if _ROOT not in site.getsitepackages():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, inherited.get("PYTHONPATH")]))
    return environment
