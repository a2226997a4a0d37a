"""The migrations make exactly the tables that the code speaks of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

from calotype import queue, tables
from calotype.database import _alembic, migrate, pending_migrations, transaction
from calotype.jobs import Job

CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace AND conrelid::regclass::text <> 'alembic_version'
"""
INDEXES = (
    "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename <> 'alembic_version'"
)


@pytest.fixture
def other_schema(engine: Engine) -> Iterator[sa.Connection]:
    """A schema whose tables `calotype.tables` has made, in a transaction that is rolled back."""
    with engine.connect() as conn:
        conn.execute(sa.text("CREATE SCHEMA made_from_metadata"))
        conn.execute(sa.text("SET LOCAL search_path TO made_from_metadata"))
        tables.metadata.create_all(conn)
        yield conn
        conn.rollback()


def _facts(conn: sa.Connection, statement: str) -> set[tuple[Any, ...]]:
    rows = conn.execute(sa.text(statement)).all()
    return {
        tuple(str(value).replace("made_from_metadata.", "").replace("public.", "") for value in row) for row in rows
    }


def test_the_migrated_schema_has_every_table_and_column_of_the_metadata(engine: Engine) -> None:
    with engine.connect() as conn:
        assert compare_metadata(MigrationContext.configure(conn), tables.metadata) == []


@pytest.mark.parametrize("statement", [CONSTRAINTS, INDEXES], ids=["constraints", "indexes"])
def test_the_migrated_schema_has_the_same_constraints_and_indexes(
    engine: Engine, other_schema: sa.Connection, statement: str
) -> None:
    with engine.connect() as conn:
        migrated = _facts(conn, statement)
    made = _facts(other_schema, statement)
    assert migrated and migrated == made


def test_a_migrated_database_has_nothing_pending_and_migrating_again_is_harmless(engine: Engine) -> None:
    assert pending_migrations(engine) == []
    migrate(engine)
    assert pending_migrations(engine) == []


def test_a_schema_of_a_later_release_lacks_nothing(engine: Engine) -> None:
    with transaction(engine) as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert pending_migrations(engine) == []


def test_an_empty_database_has_everything_pending(engine: Engine) -> None:
    with transaction(engine) as conn:
        conn.execute(sa.text("DROP TABLE alembic_version"))
    assert pending_migrations(engine)[0] == "0001"


def test_the_shares_of_jobs_that_run_are_reckoned_when_they_begin_to_be_measured(
    engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]
) -> None:
    for _ in range(2):
        make_job()
        with transaction(engine) as conn:
            assert queue.claim(conn, make_worker(), ["diffusion.generate"], 60.0)
    shares = sa.select(tables.shares.c.settled, tables.shares.c.devices, tables.shares.c.device_starts)
    with transaction(engine) as conn:
        before = conn.execute(shares).one()
        config = _alembic(engine)
        config.attributes["connection"] = conn
        command.downgrade(config, "0002")
        assert "began" in {column["name"] for column in sa.inspect(conn).get_columns("shares")}
    migrate(engine)
    with transaction(engine) as conn:
        assert conn.execute(shares).one() == pytest.approx(before)
