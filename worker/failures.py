"""Why a job failed, in the stable codes that users and the queue act on."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
import traceback
from urllib.parse import urlsplit

from calotype import queue
from calotype.errors import CalotypeError, Conflict, DependencyDown, Invalid, JobFailed
from calotype.settings import Settings
from worker.disk import DISK_FULL_ERRORS, disk_full

#: How much of a foreign exception's message a job's error shows.
DETAIL_CHARACTERS = 500

#: How CUDA, HIP and cuBLAS word errors after which the process's device context is lost.
_STICKY = re.compile(
    r"device-side assert|illegal memory access|unspecified launch failure|misaligned address|illegal instruction|"
    r"uncorrectable ECC|CUDA error: (unknown error|an illegal|launch)|launch timed out|GPU has fallen off the bus|"
    r"all CUDA-capable devices are busy or unavailable|hardware stack error",
    re.IGNORECASE,
)
#: How PyTorch words an allocation that failed where it does not raise OutOfMemoryError: on a CPU, inside a library.
_OUT_OF_MEMORY = re.compile(
    r"not enough memory|can't allocate memory|out of memory|failed to allocate|CU(BLAS|DNN)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)


def classify(exc: Exception, settings: Settings) -> JobFailed:
    """The verdict on a job whose handler raised `exc`; a JobFailed speaks for itself."""
    if isinstance(exc, JobFailed):
        return exc
    if _is_sticky(exc):
        return JobFailed(
            "internal_error",
            "The device failed",
            f"{_summary(exc, settings)}. Only a new process can use the device again; the worker restarts.",
            retryable=True,
            fatal=True,
        )
    if is_out_of_memory(exc):
        return JobFailed(
            "out_of_memory",
            "Out of memory",
            f"The job does not fit into the worker's memory: {_summary(exc, settings)}. "
            "Ask for fewer or smaller images, or a smaller batch.",
            retryable=True,
        )
    if isinstance(exc, OSError) and exc.errno in DISK_FULL_ERRORS:
        return disk_full("No space left on the worker's disk while the job ran.")
    if isinstance(exc, DependencyDown):
        return JobFailed("dependency_down", "A dependency is down", exc.detail, retryable=True)
    if isinstance(exc, Invalid | Conflict):
        return JobFailed("bad_input", "The request cannot be met", exc.detail, retryable=False)
    return JobFailed("internal_error", "The worker met an error", _summary(exc, settings), retryable=False)


def retry_in(failure: JobFailed, attempt: int, settings: Settings) -> float | None:
    """Seconds until the next attempt, None when none would help."""
    if not failure.retryable:
        return None
    return queue.backoff(attempt, settings.retry_seconds, random.random())  # noqa: S311 - spreads load, guards nothing


def _is_sticky(exc: Exception) -> bool:
    return isinstance(exc, RuntimeError) and not is_out_of_memory(exc) and bool(_STICKY.search(str(exc)))


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether less work at once could have avoided this error."""
    if isinstance(exc, MemoryError):
        return True
    # Only a process that has loaded torch can meet torch's exceptions.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(exc, torch.OutOfMemoryError):
        return True
    return isinstance(exc, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(exc)))


def _summary(exc: Exception, settings: Settings) -> str:
    """Type, message and place of an exception, short and without secrets."""
    message = exc.detail if isinstance(exc, CalotypeError) else str(exc).strip()
    first_line = message.splitlines()[0] if message else ""
    frames = traceback.extract_tb(exc.__traceback__)
    place = f" (at {frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    text = f"{type(exc).__name__}: {first_line}"[:DETAIL_CHARACTERS] + place
    for secret in _secrets(settings):
        text = text.replace(secret, "***")
    return text


def _secrets(settings: Settings) -> list[str]:
    secret = [getattr(settings, field.name) for field in dataclasses.fields(settings) if field.metadata["secret"]]
    texts = [text for text in secret if text]
    passwords = [urlsplit(text).password for text in texts if "://" in text]
    return texts + [password for password in passwords if password]
