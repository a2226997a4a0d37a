"""What jobs start from: datasets and models."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.jobs import Family
from calotype.tables.columns import belongs_to, metadata, one_of, timestamp

datasets = sa.Table(
    "datasets",
    metadata,
    # "ds_" and 32 hexadecimal digits.
    sa.Column("id", sa.Text, primary_key=True),
    # None: shared with every tenant.
    belongs_to("tenant_id", "tenants"),
    sa.Column("name", sa.Text, nullable=False),
    # uploading: the client still puts the archive; ready: validated and usable.
    sa.Column("state", sa.Text, nullable=False),
    # sha256 of the canonical archive.
    sa.Column("digest", sa.Text),
    # The canonical archive; while uploading, the raw one.
    sa.Column("object_key", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("images", sa.Integer, nullable=False, server_default="0"),
    sa.Column("captions", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("labels", pg.ARRAY(sa.Text), nullable=False, server_default="{}"),
    timestamp("created_at", now=True),
    sa.CheckConstraint(one_of("state", ("uploading", "ready")), name="state"),
    sa.CheckConstraint("(state = 'ready') = (digest IS NOT NULL)", name="ready_has_digest"),
    # The same content once a tenant; NULLS NOT DISTINCT so that shared ones count as one owner.
    sa.Index(
        "datasets_digest_key",
        "tenant_id",
        "digest",
        unique=True,
        postgresql_where=sa.text("digest IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    ),
    sa.Index("datasets_name_idx", "tenant_id", "name"),
    sa.Index("datasets_object_key_idx", "object_key"),
)

model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    # None: shared with every tenant.
    belongs_to("tenant_id", "tenants"),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("family", sa.Text, nullable=False),
    # e.g. sd3, lora
    sa.Column("architecture", sa.Text, nullable=False),
    # For adapters: the model they fit, "name@version".
    sa.Column("base", sa.Text),
    # sha256 over the files' names and digests; the revision for a hub model.
    sa.Column("digest", sa.Text, nullable=False),
    # [{"path", "object_key", "bytes", "sha256"}]
    sa.Column("files", pg.JSONB, nullable=False),
    # {"type": "starter" | "s3" | "hub" | "train", …}
    sa.Column("source", pg.JSONB, nullable=False),
    sa.Column("licence", sa.Text),
    sa.Column("parameters", pg.JSONB, nullable=False, server_default="{}"),
    # No foreign key: deleting the job that made a model leaves the model.
    sa.Column("job_id", pg.UUID(as_uuid=True)),
    timestamp("created_at", now=True),
    sa.CheckConstraint(one_of("family", Family), name="family"),
    sa.CheckConstraint("version > 0", name="version"),
    sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'", name="name"),
    sa.Index(
        "model_versions_name_key",
        "tenant_id",
        "name",
        sa.text("version DESC"),
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
)
