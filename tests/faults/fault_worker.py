"""A real worker process without torch: `python fault_worker.py NAME --beginnings DIR [--batch] [--fault FAULT]…`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from calotype import log
from calotype.settings import load_settings
from tests.faults import fault_points

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--beginnings", type=Path, required=True)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--fault", action="append", default=[])
    options = parser.parse_args()
    for fault in options.fault:
        fault_points.arm(fault)

    # Only now: these bind what a fault replaces.
    from tests.faults import fault_handlers
    from worker.families import HANDLERS
    from worker.process import WorkerProcess

    fault_handlers.beginnings = options.beginnings
    HANDLERS[fault_handlers.QUEUE] = fault_handlers.BATCH_HANDLER if options.batch else fault_handlers.HANDLER
    settings = load_settings()
    log.configure(settings)
    sys.exit(WorkerProcess(settings, (fault_handlers.QUEUE,), options.name).run())
