"""A real worker process whose model is the stand-in: ``python -m benchmarks.worker NAME``"""

from __future__ import annotations

import sys

from calotype import log
from calotype.settings import load_settings
from worker.families import HANDLERS
from worker.process import WorkerProcess

QUEUE = "diffusion.generate"
HANDLER = "benchmarks.handler:run_batch"


def main() -> int:
    HANDLERS[QUEUE] = HANDLER
    settings = load_settings()
    log.configure(settings)
    return WorkerProcess(settings, (QUEUE,), sys.argv[1]).run()


if __name__ == "__main__":
    sys.exit(main())
