"""The file that liveness probes look at: its age says how long ago the process last went round its main loop.

A local file, because asking a busy worker over the network would restart it for being busy.
"""

from __future__ import annotations

import logging

from calotype.settings import Settings

log = logging.getLogger(__name__)


def show_life(settings: Settings) -> None:
    """Touch CALOTYPE_HEARTBEAT_FILE, if one is set."""
    if settings.heartbeat_file is None:
        return
    try:
        settings.heartbeat_file.touch()
    except OSError as exc:
        log.warning("cannot touch the heartbeat file", extra={"path": settings.heartbeat_file, "reason": exc.strerror})
