"""Real Postgres, Redis and S3 of the embedded stack, for one measurement."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, migrate
from calotype.local.postgres import Postgres
from calotype.local.process import tail
from calotype.local.redis import Redis
from calotype.local.services import Services, make_services, start_services, stop_processes
from calotype.settings import Settings

DATABASE = "bench"
#: Of each log, shown when a measurement fails.
LAST_LINES = 4


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Services that run, all durable: a commit is on disk when it returns."""

    settings: Settings
    postgres: Postgres
    redis: Redis
    #: For logs and whatever else ends with the measurement.
    folder: Path


@contextmanager
def running() -> Iterator[Stack]:
    """A fresh, migrated stack that ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="calotype-bench-"))
    # The unprivileged account that Postgres runs under must be able to enter.
    folder.chmod(0o711)
    try:
        made = make_services(folder)
        processes = start_services(made.all)
        try:
            yield Stack(settings=_prepare(folder, made), postgres=made.postgres, redis=made.redis, folder=folder)
        except Exception:
            _show_logs(folder)
            raise
        finally:
            stop_processes(processes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def database(stack: Stack, name: str) -> Settings:
    """Settings of a further database of the same server, fresh and migrated."""
    stack.postgres.ensure_database(name)
    settings = dataclasses.replace(stack.settings, database_url=stack.postgres.url(name))
    _migrate(settings)
    return settings


def _migrate(settings: Settings) -> None:
    engine = connect_engine(settings, application_name="bench")
    try:
        migrate(engine)
    finally:
        engine.dispose()


def _show_logs(folder: Path) -> None:
    """The last words of every process: the logs go with the folder."""
    for log in sorted(folder.glob("*.log")):
        print(f"--- {log.name}\n{tail(log, LAST_LINES)}", file=sys.stderr)


def _prepare(folder: Path, made: Services) -> Settings:
    made.postgres.ensure_database(DATABASE)
    settings = Settings(
        database_url=made.postgres.url(DATABASE),
        broker_url=made.redis.url,
        s3_endpoint=made.s3.endpoint,
        s3_access_key=made.s3.access_key,
        s3_secret_key=made.s3.secret_key,
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        device="cpu",
        log_format="json",
    )
    _migrate(settings)
    ObjectStore(settings).ensure_bucket()
    return settings
