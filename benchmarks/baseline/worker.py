"""A Celery worker of the baseline: ``python -m benchmarks.baseline.worker NAME READY_FILE``

The same as ``celery -A benchmarks.baseline.tasks worker -c 1``, and makes a file when it is ready.
"""

from __future__ import annotations

import sys
from pathlib import Path

from celery.signals import worker_ready

from benchmarks.baseline.tasks import app


def main() -> None:
    name, ready = sys.argv[1], Path(sys.argv[2])

    def say_ready(**_: object) -> None:
        ready.touch()

    worker_ready.connect(say_ready, weak=False)
    app.worker_main(["worker", "--concurrency", "1", "--hostname", f"{name}@%h", "--loglevel", "WARNING"])


if __name__ == "__main__":
    main()
