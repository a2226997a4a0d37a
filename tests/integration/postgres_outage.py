"""An outage of Postgres that only one test's database feels."""

from __future__ import annotations

import psycopg
from psycopg import sql
from sqlalchemy.engine import make_url


class Outage:
    """While it lasts nobody gets into the database, and who was in has been thrown out."""

    def __init__(self, database_url: str) -> None:
        url = make_url(database_url).set(drivername="postgresql")
        self._database = url.database or ""
        self._url = url.set(database="postgres").render_as_string(hide_password=False)

    def begin(self) -> None:
        self._allow_connections(False)
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (self._database,)
            )

    def end(self) -> None:
        self._allow_connections(True)

    def _allow_connections(self, allowed: bool) -> None:
        statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement.format(sql.Identifier(self._database), sql.Literal(allowed)))
