"""Postgres: one engine a process, short transactions, one place that says when the database is away."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from calotype.errors import DependencyDown
from calotype.settings import Settings

T = TypeVar("T")

#: A transaction that waits for a client longer than this is ended by Postgres, so that it cannot hold locks.
IDLE_IN_TRANSACTION_MS = 30_000
#: No statement of ours takes this long; one that does is stuck.
STATEMENT_MS = 30_000
#: How often a transaction is begun that is ended to undo a deadlock each time.
DEADLOCK_TRIES = 5
#: Seconds of silence until the peer is probed, between probes, and how many go unanswered: half a minute in all.
KEEPALIVE = (10, 5, 3)
#: Advisory lock held while migrations run.
MIGRATION_LOCK = 0x63616C6F74797065  # "calotype"


def connect_engine(
    settings: Settings, *, application_name: str, pool_size: int | None = None, autocommit: bool = False
) -> sa.Engine:
    """An engine for ``settings.database_url``; connects lazily, looks at a pooled connection before use.

    With ``autocommit`` its connections are for :func:`statement`.
    """
    settings.require("database_url")
    url = make_url(settings.database_url or "").set(drivername="postgresql+psycopg")
    idle, interval, count = KEEPALIVE
    options = (
        f"-c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS} "
        f"-c statement_timeout={STATEMENT_MS} -c timezone=UTC "
        # For Postgres' side of the connection. By default it takes two hours to notice that a machine is gone, and so
        # long the reconciler that ran there would hold the leader's lock.
        f"-c tcp_keepalives_idle={idle} -c tcp_keepalives_interval={interval} -c tcp_keepalives_count={count}"
    )
    engine = sa.create_engine(
        url,
        pool_size=pool_size or settings.database_pool,
        max_overflow=0,
        # The connection used last has its statements prepared and planned.
        pool_use_lifo=True,
        isolation_level="AUTOCOMMIT" if autocommit else None,
        pool_timeout=10,
        connect_args={
            "application_name": application_name,
            "connect_timeout": 5,
            "options": options,
            "keepalives_idle": idle,
            "keepalives_interval": interval,
            "keepalives_count": count,
            "tcp_user_timeout": 30_000,
        },
    )
    sa.event.listen(engine, "checkout", _refuse_if_hung_up)
    return engine


def autocommitting(engine: sa.Engine) -> sa.Engine:
    """An engine for :func:`statement` that shares the connections of ``engine``; slower than one with its own."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _refuse_if_hung_up(connection: Any, record: Any, _proxy: object) -> None:
    """Makes the pool connect anew when Postgres has closed its connections.

    An idle connection has nothing to say. What can be read of it is its end, or the words before that: a look at the
    socket tells, where a ping would cost every transaction one more round trip. Of a peer that is gone without a word
    the keepalives tell, and a ping would have to wait for them, too.
    """
    if not record.info.get("used"):
        # Made this moment: whoever refuses that is given an error, and no connection any more.
        record.info["used"] = True
    elif connection.closed or _is_readable(connection.fileno()):
        raise InvalidatePoolError("Postgres has closed an idle connection.")


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that commits at the end of the block.

    Raises:
        DependencyDown: Postgres cannot be reached or went away; the transaction did not commit, except that a
            connection lost *during* COMMIT leaves that open.
    """
    with _naming_outages(), engine.begin() as conn:
        yield conn


@contextmanager
def statement(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection for single statements, each a transaction of its own: without BEGIN and COMMIT it costs half.

    ``engine`` is one with autocommit.

    Raises:
        DependencyDown: Postgres cannot be reached or went away; whether a statement that was sent took effect is open.
    """
    with _naming_outages(), engine.connect() as conn:
        yield conn


@contextmanager
def _naming_outages() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as exc:
        raise _away(exc) from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise _away(exc) from exc
        raise


def in_transaction(engine: sa.Engine, action: Callable[[sa.Connection], T]) -> T:
    """What ``action`` gives, in a transaction; begun anew when Postgres ends it to undo a deadlock.

    Whoever writes one job locks in an order that allows none. A transaction that writes many cannot know them before,
    and those that it meets are the ones to give way.

    Raises:
        DependencyDown: as :func:`transaction`.
    """
    for _ in range(DEADLOCK_TRIES - 1):
        try:
            with transaction(engine) as conn:
                return action(conn)
        except DependencyDown as exc:
            if not undid_deadlock(exc):
                raise
    with transaction(engine) as conn:
        return action(conn)


def undid_deadlock(exc: DependencyDown) -> bool:
    """Whether Postgres ended the transaction to undo a deadlock: begun anew it may well succeed."""
    return isinstance(getattr(exc.__cause__, "orig", None), DeadlockDetected)


def _away(exc: Exception) -> DependencyDown:
    # The driver's words name host, port and account: good in a log, not for everybody who may ask.
    return DependencyDown(
        f"Postgres cannot be used right now: {_reason(exc)}",
        public="Postgres cannot be used right now; try again later.",
    )


def _reason(exc: Exception) -> str:
    """The first line of the driver's message, which names no password."""
    cause: Any = getattr(exc, "orig", None) or exc
    return str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__


def _alembic(engine: sa.Engine | None = None) -> Config:
    # `migrations` is a package of data beside this one: found by its path, never imported from here.
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parent.parent / "migrations"))
    config.attributes["engine"] = engine
    return config


def migrate(engine: sa.Engine, revision: str = "head") -> None:
    """Brings the schema to ``revision``. Two processes may call it at once: one waits for the other."""
    with transaction(engine) as conn:
        conn.execute(sa.text("SET LOCAL statement_timeout = 0"))
        conn.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        config = _alembic(engine)
        config.attributes["connection"] = conn
        command.upgrade(config, revision)


def pending_migrations(engine: sa.Engine) -> list[str]:
    """The revisions that the schema lacks, oldest first.

    A schema of a later release lacks nothing: migrations leave the release before them working.
    """
    script = ScriptDirectory.from_config(_alembic())
    with transaction(engine) as conn:
        present = MigrationContext.configure(conn).get_current_revision()
    if present is not None and present not in {revision.revision for revision in script.walk_revisions()}:
        return []
    return [revision.revision for revision in script.iterate_revisions("head", present or "base")][::-1]
