"""The one metadata, with the names of constraints, and columns that several tables have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
    }
)


def timestamp(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable and not now)


def belongs_to(name: str, table: str, **options: Any) -> sa.Column[object]:
    """The id of a row of ``table`` that this row belongs to, and with which it is deleted."""
    return sa.Column(name, pg.UUID(as_uuid=True), sa.ForeignKey(f"{table}.id", ondelete="CASCADE"), **options)


def one_of(column: str, values: Iterable[str]) -> str:
    """A condition, for a CHECK."""
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"
