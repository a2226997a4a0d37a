"""A real worker process whose handlers are those of `worker_handlers`: `python worker_process.py NAME [batch]`"""

from __future__ import annotations

import sys

import worker_handlers

from calotype import log
from calotype.settings import load_settings
from worker.families import HANDLERS
from worker.process import WorkerProcess
from worker.supervisor import Limits

if __name__ == "__main__":
    batch = sys.argv[2:] == ["batch"]
    HANDLERS[worker_handlers.QUEUE] = worker_handlers.BATCH_HANDLER if batch else worker_handlers.HANDLER
    settings = load_settings()
    log.configure(settings)
    limits = Limits(timeout_grace_seconds=1.0)
    sys.exit(WorkerProcess(settings, (worker_handlers.QUEUE,), sys.argv[1], limits).run())
