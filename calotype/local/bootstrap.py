"""What a stack needs before its first job: schema, bucket, a tenant with a key, the starter models and datasets."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from calotype import tables, tenants
from calotype.artifacts import ObjectStore
from calotype.database import migrate, transaction
from calotype.errors import DependencyDown, NotFound, Unauthenticated
from calotype.local import starter_assets
from calotype.local.data_dir import DataDir
from calotype.local.process import Process
from calotype.settings import Settings
from calotype.tenants import Scope, Tenant


def prepare(settings: Settings, engine: sa.Engine, data_dir: DataDir, report: Callable[[str], None]) -> None:
    """Bring schema, bucket, key and starter assets up to date; changes nothing when they are."""
    migrate(engine)
    store = ObjectStore(settings)
    store.ensure_bucket()
    ensure_api_key(settings, engine, data_dir)
    for name in starter_assets.register(settings, engine, store):
        report(f"registered {name}")


def ensure_api_key(settings: Settings, engine: sa.Engine, data_dir: DataDir) -> None:
    """Leave a working admin key in the data folder: CALOTYPE_BOOTSTRAP_KEY, the one that is there, or a new one."""
    with transaction(engine) as conn:
        tenant = _default_tenant(conn)
        given = settings.bootstrap_key or data_dir.read_api_key()
        if given is not None and _is_valid(conn, given):
            key = given
        elif settings.bootstrap_key is not None:
            tenants.store_bootstrap_key(conn, settings.bootstrap_key)
            key = settings.bootstrap_key
        else:
            # The database is new, or the key was revoked in it: a key of another database opens nothing here.
            _, key = tenants.create_key(conn, tenant, scopes=tuple(Scope), name="calotype up")
    if key != data_dir.read_api_key():
        data_dir.write_api_key(key)


def worker_is_registered(engine: sa.Engine, process: Process) -> bool:
    """Whether the worker in this process has announced itself, which it does once it can take jobs."""
    workers = tables.workers
    alive = sa.select(workers.c.id).where(workers.c.pid == process.pid, workers.c.retired_at.is_(None))
    # Pids are reused; a row that is older than the process is another one's.
    fresh = workers.c.started_at > sa.func.now() - sa.func.make_interval(0, 0, 0, 0, 0, 0, process.age_seconds + 5)
    try:
        with transaction(engine) as conn:
            return conn.execute(alive.where(fresh)).first() is not None
    except DependencyDown:
        return False


def _default_tenant(conn: sa.Connection) -> Tenant:
    try:
        return tenants.get_tenant(conn, tenants.DEFAULT_TENANT)
    except NotFound:
        return tenants.create_tenant(conn, tenants.DEFAULT_TENANT)


def _is_valid(conn: sa.Connection, key: str) -> bool:
    try:
        return Scope.ADMIN in tenants.authenticate(conn, key).scopes
    except Unauthenticated:
        return False
