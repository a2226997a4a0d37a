"""Connections of the pool: one that Postgres has closed is noticed before it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype.database import connect_engine, statement, transaction
from calotype.settings import Settings

TERMINATE = sa.text(
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
    "WHERE application_name = 'pooled' AND datname = current_database()"
)


@pytest.fixture
def pooled(settings: Settings) -> Iterator[Engine]:
    engine = connect_engine(settings, application_name="pooled", pool_size=3)
    yield engine
    engine.dispose()


def _pid(conn: sa.Connection) -> Any:
    return conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()


def _fill(pooled: Engine) -> None:
    open_ones = [pooled.connect() for _ in range(3)]
    for conn in open_ones:
        _pid(conn)
    for conn in open_ones:
        conn.close()


def test_connections_that_postgres_closed_are_made_anew_without_an_error(pooled: Engine, engine: Engine) -> None:
    _fill(pooled)
    with transaction(engine) as conn:
        assert conn.execute(TERMINATE).scalars().all() == [True, True, True]
    for _ in range(3):
        with transaction(pooled) as conn:
            assert _pid(conn)


def test_a_connection_that_was_closed_on_this_side_is_made_anew(pooled: Engine) -> None:
    _fill(pooled)
    raw = pooled.raw_connection()
    raw.driver_connection.close()  # type: ignore[union-attr]
    raw.close()
    for _ in range(3):
        with transaction(pooled) as conn:
            assert _pid(conn)


def test_the_connection_used_last_is_used_again(pooled: Engine) -> None:
    _fill(pooled)
    pids = set()
    for _ in range(5):
        with transaction(pooled) as conn:
            pids.add(_pid(conn))
    assert len(pids) == 1


def test_a_single_statement_is_kept_without_a_commit(
    settings: Settings, engine: Engine, make_tenant: Callable[..., Any]
) -> None:
    tenant = make_tenant()
    alone = connect_engine(settings, application_name="alone", autocommit=True)
    with statement(alone) as conn:
        conn.execute(sa.text("UPDATE tenants SET weight = 7 WHERE id = :id"), {"id": tenant.id})
        with transaction(engine) as other:
            found = other.execute(sa.text("SELECT weight FROM tenants WHERE id = :id"), {"id": tenant.id})
            assert found.scalar_one() == 7
    alone.dispose()
