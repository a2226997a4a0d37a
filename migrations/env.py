"""Alembic's entry point: runs the migrations on the connection that :mod:`calotype.database` hands in.

Migrations follow expand and contract: each must leave the release before it working, since workers of both run side
by side during an upgrade. Add columns nullable or with a default; drop only what no running release reads.
"""

from __future__ import annotations

from alembic import context

from calotype.tables import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit("Run migrations with `calotype migrate`, which knows where the database is.")

context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=False)
context.run_migrations()
