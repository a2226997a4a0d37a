"""What a number was measured on, in words that name no place."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

from calotype.local.postgres import postgres_program
from calotype.local.redis import redis_program

PACKAGES = ("flask", "gunicorn", "celery", "sqlalchemy", "psycopg", "procrastinate", "torch", "diffusers")


def describe() -> dict[str, str]:
    """Machine, system, interpreter and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{len(os.sched_getaffinity(0))} CPU cores, {memory / 2**30:.0f} GB memory, no GPU used, "
        f"{os.getloadavg()[0]:.1f} processes at work when it began",
        "system": f"{platform.system()} {platform.release().split('-')[0]}, Python {platform.python_version()}",
        "services": f"{_version(str(postgres_program('postgres')))}; {_version(str(redis_program()))}",
        "packages": ", ".join(f"{name} {version}" for name, version in _packages().items()),
    }


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True, timeout=10)
    words = done.stdout.replace("(", " ").replace(")", " ").split()
    return " ".join(words[:3])
