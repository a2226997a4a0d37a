"""The API, as `python -m api`; with `--die-once FILE` it is killed after the commit of a job and before the ring.

That happens once: FILE exists from then on. gunicorn starts another process, as it does for one that crashed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calotype.doorbell import Doorbell
from tests.faults.fault_points import die


def _die_before_ringing(marker: Path) -> None:
    ring = Doorbell.ring

    def die_or_ring(bell: Doorbell, queue: str) -> None:
        if not marker.exists():
            marker.touch()
            die()
        ring(bell, queue)

    Doorbell.ring = die_or_ring  # type: ignore[method-assign]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--die-once", type=Path)
    options = parser.parse_args()
    if options.die_once is not None:
        _die_before_ringing(options.die_once)

    from api.__main__ import main

    sys.exit(main())
