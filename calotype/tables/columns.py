"""The one metadata, with the names of constraints, and columns that several tables have."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

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


def one_of(column: str, values: Iterable[str]) -> str:
    """A condition, for a CHECK."""
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"
