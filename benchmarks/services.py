"""Real Postgres, Redis and S3 of the embedded stack, for one measurement."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, migrate
from calotype.local.postgres import Postgres
from calotype.local.process import free_port
from calotype.local.redis import Redis
from calotype.local.s3 import S3
from calotype.local.services import start_services, stop_processes
from calotype.settings import Settings


@contextmanager
def running() -> Iterator[Settings]:
    """Settings of a fresh, migrated, durable stack that ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="calotype-bench-"))
    folder.chmod(0o711)
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
    processes = start_services([postgres, redis, s3])
    try:
        postgres.ensure_database("bench")
        settings = Settings(
            database_url=postgres.url("bench"),
            broker_url=redis.url,
            s3_endpoint=s3.endpoint,
            s3_access_key=s3.access_key,
            s3_secret_key=s3.secret_key,
        )
        engine = connect_engine(settings, application_name="bench")
        migrate(engine)
        engine.dispose()
        ObjectStore(settings).ensure_bucket()
        yield settings
    finally:
        stop_processes(processes)
        shutil.rmtree(folder, ignore_errors=True)
