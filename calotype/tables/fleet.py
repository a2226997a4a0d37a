"""Who works, and from which queues nothing is taken."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.jobs import QUEUES
from calotype.tables.columns import metadata, one_of, timestamp

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hostname", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("queues", pg.ARRAY(sa.Text), nullable=False),
    # Workers whose device time is shared out together.
    sa.Column("pool", sa.Text, nullable=False, server_default="default"),
    # {"kind": "cpu" | "cuda", "name": …, "memory_bytes": …, "torch": …}
    sa.Column("device", pg.JSONB, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # starting, idle, busy, draining
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("loaded_models", pg.ARRAY(sa.Text), nullable=False, server_default="{}"),
    timestamp("started_at", now=True),
    timestamp("seen_at", now=True),
    # When it last asked for work; one that is seen but does not ask is deaf.
    timestamp("looked_at"),
    # An operator wants it to take no more jobs.
    sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()),
    # Set on a clean stop, or by the reconciler when it was not seen for long.
    timestamp("retired_at"),
    sa.CheckConstraint(one_of("state", ("starting", "idle", "busy", "draining")), name="state"),
)

# Queues from which nothing is claimed.
queue_pauses = sa.Table(
    "queue_pauses",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    timestamp("paused_at", now=True),
    sa.CheckConstraint(one_of("queue", QUEUES), name="queue"),
)
