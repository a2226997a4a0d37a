"""``python -m benchmarks.baseline``: makes the table when it is missing and serves until SIGTERM."""

from __future__ import annotations

from sqlalchemy import create_engine

from benchmarks.baseline import configuration
from benchmarks.baseline.models import Base
from benchmarks.baseline.server import Server


def main() -> None:
    engine = create_engine(configuration.database_url())
    Base.metadata.create_all(engine)
    engine.dispose()
    Server().run()


if __name__ == "__main__":
    main()
