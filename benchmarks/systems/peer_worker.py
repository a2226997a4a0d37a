"""A worker of procrastinate: ``python -m benchmarks.systems.peer_worker NAME READY_FILE``"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.systems.peer import DATABASE_URL, make_app


def main() -> None:
    app = make_app(os.environ[DATABASE_URL], asynchronous=True)
    Path(sys.argv[2]).touch()
    app.run_worker(name=sys.argv[1], concurrency=1)


if __name__ == "__main__":
    main()
