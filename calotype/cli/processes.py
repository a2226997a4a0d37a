"""Commands that run one process, as a cluster does, and the version."""

from __future__ import annotations

import os
from collections.abc import Callable

import typer

from calotype.cli.console import err, out


def migrate() -> None:
    """Bring the database to this version's schema; with CALOTYPE_BOOTSTRAP_KEY, store the first admin key.

    Makes the bucket too where the object store is set. Safe to run twice and at once.
    """
    from calotype import database, tenants
    from calotype.artifacts import ObjectStore
    from calotype.settings import load_settings

    settings = load_settings()
    engine = database.connect_engine(settings, application_name="calotype-migrate", pool_size=2)
    try:
        pending = database.pending_migrations(engine)
        database.migrate(engine)
        if settings.bootstrap_key is not None:
            with database.transaction(engine) as conn:
                tenants.store_bootstrap_key(conn, settings.bootstrap_key)
        if settings.s3_endpoint is not None:
            ObjectStore(settings).ensure_bucket()
    finally:
        engine.dispose()
    err().print(f"applied {', '.join(pending)}" if pending else "nothing to do; the schema is up to date")


def version() -> None:
    """Print the version."""
    from calotype import __version__

    out().print(f"calotype {__version__}")


def become(module: str) -> Callable[[typer.Context], None]:
    """A command that is replaced by ``python -m module``, so that signals reach it directly."""

    def command(context: typer.Context) -> None:
        from calotype.local.modules import module_argv, module_environment

        argv = module_argv(module, *context.args)
        os.execve(argv[0], argv, module_environment(os.environ))  # noqa: S606 - no shell is meant

    return command
