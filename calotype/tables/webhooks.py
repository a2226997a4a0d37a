"""What is told of ended jobs, and where nothing is told any more."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.tables.columns import belongs_to, metadata, one_of, timestamp

# Webhooks to deliver and delivered; written in the transaction that ends the job.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    # Also the webhook-id, the same over all tries.
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    belongs_to("tenant_id", "tenants", nullable=False),
    # No foreign key: what was to be told is told also when the job is deleted.
    sa.Column("job_id", pg.UUID(as_uuid=True), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    # Host and port: what sending is fair between.
    sa.Column("host", sa.Text, nullable=False),
    # None: the tenant's own.
    sa.Column("secret", sa.Text),
    # e.g. job.succeeded
    sa.Column("type", sa.Text, nullable=False),
    # The very text that is signed and sent.
    sa.Column("body", sa.Text, nullable=False),
    # pending, delivered, failed (given up), gone (the receiver answered 410)
    sa.Column("state", sa.Text, nullable=False, server_default="pending"),
    # Tries begun, all of them and before the latest replay. A later try fences what an earlier one reports.
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("attempts_before", sa.Integer, nullable=False, server_default="0"),
    # [{"at", "status_code", "error", "seconds", "answer"}], the latest last
    sa.Column("log", pg.JSONB, nullable=False, server_default="[]"),
    timestamp("created_at", now=True),
    # The next try, or when one that is being made counts as lost; None when there is none.
    timestamp("due_at"),
    sa.CheckConstraint(one_of("state", ("pending", "delivered", "failed", "gone")), name="state"),
    sa.CheckConstraint("(state = 'pending') = (due_at IS NOT NULL)", name="pending_is_due"),
    sa.Index("webhook_deliveries_due_idx", "due_at", postgresql_where=sa.text("state = 'pending'")),
    sa.Index("webhook_deliveries_tenant_idx", "tenant_id", sa.text("id DESC")),
    sa.Index("webhook_deliveries_job_idx", "job_id"),
    sa.Index("webhook_deliveries_created_idx", "created_at"),
)

# Where nothing is sent any more, because the receiver answered 410; until a delivery is replayed.
webhook_stops = sa.Table(
    "webhook_stops",
    metadata,
    belongs_to("tenant_id", "tenants", primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    timestamp("since", now=True),
)
