"""Ways for a worker process to end, and codes that say which.

A thread cannot be killed. When one hangs inside a call, or the GPU's context is broken, only a new process helps: this
one ends at once and whoever supervises it (Kubernetes, `calotype up`) starts another.
"""

from __future__ import annotations

import logging
import os
import sys
from enum import IntEnum
from typing import NoReturn

log = logging.getLogger(__name__)


class ExitCode(IntEnum):
    """Exit status of a worker process."""

    #: Stopped as asked.
    CLEAN = 0
    #: Bad arguments or settings.
    USAGE = 2
    #: A job showed no life for `stall_seconds`.
    STALLED = 70
    #: A job went on past its timeout and did not react.
    TIMEOUT = 71
    #: The device reported an error that outlives the job that met it.
    DEVICE = 72
    #: Asked to stop, and the job did not let go in time; or asked twice.
    FORCED = 73
    #: The drain loop ended by itself or hangs outside a job.
    BROKEN = 74


def leave(code: ExitCode, reason: str) -> NoReturn:
    """End the process at once, without waiting for any thread. The log says why."""
    level = logging.INFO if code is ExitCode.CLEAN else logging.CRITICAL
    log.log(level, "leaving", extra={"exit_code": int(code), "reason": reason})
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
