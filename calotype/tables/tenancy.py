"""Who may ask for what: tenants and their keys."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.tables.columns import belongs_to, metadata, timestamp

tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    # Share of the device time beside other tenants that wait, too.
    sa.Column("weight", sa.Float, nullable=False, server_default="1"),
    # None: no limit.
    sa.Column("max_queued", sa.Integer),
    sa.Column("max_running", sa.Integer),
    # Signs webhooks that bring no secret of their own; made when first needed.
    sa.Column("webhook_secret", sa.Text),
    # The one before signs, too, for a while after the change.
    sa.Column("webhook_secret_before", sa.Text),
    timestamp("webhook_secret_rotated_at"),
    timestamp("created_at", now=True),
    sa.CheckConstraint("max_queued >= 0", name="limits"),
    sa.CheckConstraint("weight > 0 AND weight < 'Infinity' AND max_running >= 0", name="share"),
    sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="name"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    belongs_to("tenant_id", "tenants", nullable=False, index=True),
    sa.Column("name", sa.Text, nullable=False),
    # The first characters of the key, to recognise it by; the key itself is never stored.
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("scopes", pg.ARRAY(sa.Text), nullable=False),
    timestamp("created_at", now=True),
    timestamp("expires_at"),
    timestamp("revoked_at"),
    timestamp("last_used_at"),
    sa.CheckConstraint("octet_length(sha256) = 32", name="sha256"),
    sa.CheckConstraint("cardinality(scopes) > 0", name="scopes"),
)
