"""What belongs to a job and is deleted with it: the key of its request, its events, the files it published."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.tables.columns import belongs_to, metadata, timestamp

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    belongs_to("tenant_id", "tenants", primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    # Of the canonical request body.
    sa.Column("body_sha256", sa.LargeBinary, nullable=False),
    belongs_to("job_id", "jobs", nullable=False, index=True),
    timestamp("created_at", now=True),
    # Old keys are forgotten at every round of the reconciler.
    sa.Index("idempotency_keys_created_at_idx", "created_at"),
)

# What happened to a job, in order; the sequence is assigned under the lock of the job's row.
events = sa.Table(
    "events",
    metadata,
    belongs_to("job_id", "jobs", primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    # state, progress, checkpoint, metrics, log
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", pg.JSONB, nullable=False),
    timestamp("created_at", now=True),
    sa.CheckConstraint("type IN ('state', 'progress', 'checkpoint', 'metrics', 'log')", name="type"),
    # What is dropped some time after the job's end.
    sa.Index("events_progress_idx", "created_at", postgresql_where=sa.text("type = 'progress'")),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    belongs_to("job_id", "jobs", primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("object_key", sa.Text, nullable=False, index=True),
    sa.Column("content_type", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("width", sa.Integer),
    sa.Column("height", sa.Integer),
    sa.Column("seed", sa.BigInteger),
    sa.CheckConstraint("bytes >= 0 AND position >= 0", name="counters"),
    sa.CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256"),
)
