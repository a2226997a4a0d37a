"""The migrations make exactly the tables that the code speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

from calotype import tables
from calotype.database import migrate, pending_migrations, transaction

CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace AND conrelid::regclass::text <> 'alembic_version'
"""
INDEXES = (
    "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND tablename <> 'alembic_version'"
)


@pytest.fixture
def other_schema(engine: Engine) -> Iterator[sa.Connection]:
    """A schema whose tables `tables.py` has made, in a transaction that is rolled back."""
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
