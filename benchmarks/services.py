"""Real Postgres, Redis and S3 of the embedded stack, for one measurement."""

from __future__ import annotations

import dataclasses
import secrets
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
from calotype.local.process import free_port, tail
from calotype.local.redis import Redis
from calotype.local.s3 import S3
from calotype.local.services import start_services, stop_processes
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
        postgres, redis, s3 = _services(folder)
        processes = start_services([postgres, redis, s3])
        try:
            yield Stack(settings=_prepare(folder, postgres, redis, s3), postgres=postgres, redis=redis, folder=folder)
        except Exception:
            _show_logs(folder)
            raise
        finally:
            stop_processes(processes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _services(folder: Path) -> tuple[Postgres, Redis, S3]:
    postgres = Postgres(
        directory=folder / "postgres",
        port=free_port(),
        password=secrets.token_urlsafe(16),
        log=folder / "postgres.log",
        durable=True,
    )
    redis = Redis(
        directory=folder / "redis", port=free_port(), password=secrets.token_urlsafe(16), log=folder / "redis.log"
    )
    s3 = S3(
        directory=folder / "s3",
        port=free_port(),
        access_key=secrets.token_hex(10),
        secret_key=secrets.token_hex(20),
        log=folder / "s3.log",
    )
    return postgres, redis, s3


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


def _prepare(folder: Path, postgres: Postgres, redis: Redis, s3: S3) -> Settings:
    postgres.ensure_database(DATABASE)
    settings = Settings(
        database_url=postgres.url(DATABASE),
        broker_url=redis.url,
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        device="cpu",
        log_format="json",
    )
    _migrate(settings)
    ObjectStore(settings).ensure_bucket()
    return settings
