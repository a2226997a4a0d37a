"""Every table, in SQLAlchemy Core, with named constraints.

The database states what must always hold, so that no code path, ours or an operator's, can break it. A test checks
that the migrations make exactly these tables.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.jobs import HELD, QUEUES, TERMINAL, Family, Kind, State

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_name)s_idx",
    }
)


def _timestamp(name: str, *, now: bool = False, nullable: bool = True) -> sa.Column[object]:
    default = sa.text("now()") if now else None
    return sa.Column(name, sa.DateTime(timezone=True), server_default=default, nullable=nullable and not now)


def _one_of(column: str, values: object) -> str:
    listed = ", ".join(f"'{value}'" for value in values)  # type: ignore[attr-defined]
    return f"{column} IN ({listed})"


tenants = sa.Table(
    "tenants",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    # None: no limit.
    sa.Column("max_queued", sa.Integer),
    _timestamp("created_at", now=True),
    sa.CheckConstraint("max_queued >= 0", name="limits"),
    sa.CheckConstraint("name ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name="name"),
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column(
        "tenant_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("tenants.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    sa.Column("name", sa.Text, nullable=False),
    # The first characters of the key, to recognise it by; the key itself is never stored.
    sa.Column("prefix", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("scopes", pg.ARRAY(sa.Text), nullable=False),
    _timestamp("created_at", now=True),
    _timestamp("expires_at"),
    _timestamp("revoked_at"),
    _timestamp("last_used_at"),
    sa.CheckConstraint("octet_length(sha256) = 32", name="sha256"),
    sa.CheckConstraint("cardinality(scopes) > 0", name="scopes"),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("hostname", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("queues", pg.ARRAY(sa.Text), nullable=False),
    # {"kind": "cpu" | "cuda", "name": …, "memory_bytes": …, "torch": …}
    sa.Column("device", pg.JSONB, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # starting, idle, busy, draining
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("loaded_models", pg.ARRAY(sa.Text), nullable=False, server_default="{}"),
    _timestamp("started_at", now=True),
    _timestamp("seen_at", now=True),
    # Set on a clean stop, or by the reconciler when it was not seen for long.
    _timestamp("retired_at"),
    sa.CheckConstraint(_one_of("state", ("starting", "idle", "busy", "draining")), name="state"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("family", sa.Text, nullable=False),
    sa.Column("queue", sa.Text, nullable=False),
    sa.Column("model", sa.Text),
    sa.Column("spec", pg.JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    # available_at minus the head start of the priority: static, so an index can hold the order of claims.
    sa.Column("rank", sa.DateTime(timezone=True), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("worker_id", pg.UUID(as_uuid=True), sa.ForeignKey("workers.id", ondelete="SET NULL")),
    _timestamp("created_at", now=True),
    _timestamp("available_at", now=True),
    _timestamp("started_at"),
    _timestamp("finished_at"),
    _timestamp("expires_at"),
    _timestamp("lease_expires_at"),
    sa.Column("timeout_seconds", sa.Float),
    sa.Column("progress", pg.JSONB(none_as_null=True)),
    sa.Column("checkpoint", pg.JSONB(none_as_null=True)),
    sa.Column("result", pg.JSONB(none_as_null=True)),
    sa.Column("error", pg.JSONB(none_as_null=True)),
    sa.Column("metadata", pg.JSONB, nullable=False, server_default="{}"),
    sa.Column("retried_from", pg.UUID(as_uuid=True), sa.ForeignKey("jobs.id", ondelete="SET NULL")),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),
    sa.CheckConstraint(_one_of("kind", Kind), name="kind"),
    sa.CheckConstraint(_one_of("family", Family), name="family"),
    sa.CheckConstraint(_one_of("queue", QUEUES), name="queue"),
    sa.CheckConstraint(_one_of("state", State), name="state"),
    sa.CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    sa.CheckConstraint("attempt >= 0 AND max_attempts > 0 AND epoch >= 0", name="counters"),
    # A job is held exactly while it runs.
    sa.CheckConstraint(f"({_one_of('state', sorted(HELD))}) = (lease_expires_at IS NOT NULL)", name="held_has_lease"),
    # A job has an end exactly when it ended.
    sa.CheckConstraint(f"({_one_of('state', sorted(TERMINAL))}) = (finished_at IS NOT NULL)", name="terminal_has_end"),
    sa.CheckConstraint("(state = 'succeeded') = (result IS NOT NULL)", name="succeeded_has_result"),
    sa.CheckConstraint("(state IN ('failed', 'expired')) = (error IS NOT NULL)", name="failed_has_error"),
    # The order of claims within a queue.
    sa.Index("jobs_claim_idx", "queue", "rank", "id", postgresql_where=sa.text("state = 'queued'")),
    # Lapsed leases.
    sa.Index("jobs_lease_idx", "lease_expires_at", postgresql_where=sa.text("state IN ('running', 'canceling')")),
    # Passed deadlines.
    sa.Index(
        "jobs_deadline_idx",
        "expires_at",
        postgresql_where=sa.text("state = 'queued' AND expires_at IS NOT NULL"),
    ),
    # How many jobs of a tenant wait.
    sa.Index("jobs_queued_idx", "tenant_id", postgresql_where=sa.text("state = 'queued'")),
    # A tenant's list, newest first.
    sa.Index("jobs_tenant_idx", "tenant_id", sa.text("id DESC")),
    # For the foreign keys: forgetting a worker, or deleting a job, must not read the whole table.
    sa.Index("jobs_worker_idx", "worker_id", postgresql_where=sa.text("worker_id IS NOT NULL")),
    sa.Index("jobs_retried_from_idx", "retried_from", postgresql_where=sa.text("retried_from IS NOT NULL")),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    # Of the canonical request body.
    sa.Column("body_sha256", sa.LargeBinary, nullable=False),
    sa.Column(
        "job_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("jobs.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    _timestamp("created_at", now=True),
    # Old keys are forgotten at every round of the reconciler.
    sa.Index("idempotency_keys_created_at_idx", "created_at"),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("job_id", pg.UUID(as_uuid=True), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
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

datasets = sa.Table(
    "datasets",
    metadata,
    # "ds_" and 32 hexadecimal digits.
    sa.Column("id", sa.Text, primary_key=True),
    # None: shared with every tenant.
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE")),
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
    _timestamp("created_at", now=True),
    sa.CheckConstraint(_one_of("state", ("uploading", "ready")), name="state"),
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
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE")),
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
    _timestamp("created_at", now=True),
    sa.CheckConstraint(_one_of("family", Family), name="family"),
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
