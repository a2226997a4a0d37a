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
    # Share of the device time beside other tenants that wait, too.
    sa.Column("weight", sa.Float, nullable=False, server_default="1"),
    # None: no limit.
    sa.Column("max_queued", sa.Integer),
    sa.Column("max_running", sa.Integer),
    # Signs webhooks that bring no secret of their own; made when first needed.
    sa.Column("webhook_secret", sa.Text),
    # The one before signs, too, for a while after the change.
    sa.Column("webhook_secret_before", sa.Text),
    _timestamp("webhook_secret_rotated_at"),
    _timestamp("created_at", now=True),
    sa.CheckConstraint("max_queued >= 0", name="limits"),
    sa.CheckConstraint("weight > 0 AND weight < 'Infinity' AND max_running >= 0", name="share"),
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
    # Workers whose device time is shared out together.
    sa.Column("pool", sa.Text, nullable=False, server_default="default"),
    # {"kind": "cpu" | "cuda", "name": …, "memory_bytes": …, "torch": …}
    sa.Column("device", pg.JSONB, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    # starting, idle, busy, draining
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("loaded_models", pg.ARRAY(sa.Text), nullable=False, server_default="{}"),
    _timestamp("started_at", now=True),
    _timestamp("seen_at", now=True),
    # When it last asked for work; one that is seen but does not ask is deaf.
    _timestamp("looked_at"),
    # An operator wants it to take no more jobs.
    sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()),
    # Set on a clean stop, or by the reconciler when it was not seen for long.
    _timestamp("retired_at"),
    sa.CheckConstraint(_one_of("state", ("starting", "idle", "busy", "draining")), name="state"),
)

# Conditions of partial indexes and expressions of others, for queries that are to use them.
_EQUALS = "artifacts_expired_at IS NULL AND state IN ('queued', 'running', 'canceling', 'succeeded')"
HAS_ARTIFACTS = "state = 'succeeded' AND artifacts_expired_at IS NULL"
# In UTC without a zone: only so the sum does not depend on a setting of the session, and may be indexed.
ARTIFACTS_DUE = "((finished_at AT TIME ZONE 'UTC') + make_interval(secs => retain_seconds))"
# Queued, in words that no claim uses: an index with this condition cannot lead its plan astray.
WAITS = "lease_expires_at IS NULL AND finished_at IS NULL"
INIT_IMAGE_OF = "split_part((spec -> 'input') ->> 'init_image', '/', 1)"
STARTS_FROM_IMAGE = "state IN ('queued', 'running', 'canceling') AND ((spec -> 'input') ->> 'init_image') IS NOT NULL"

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
    # The sequence number of its latest event.
    sa.Column("event_seq", sa.BigInteger, nullable=False, server_default="0"),
    # What a worker keeps loaded for it; equal for equal files, whatever the tenant calls them.
    sa.Column("model_key", sa.Text),
    # Equal keys may share one call of the model; None: runs alone.
    sa.Column("batch_key", sa.Text),
    # Parts of a batch it fills (images), and how many such parts one call takes.
    sa.Column("units", sa.Integer, nullable=False, server_default="1"),
    sa.Column("batch_limit", sa.Integer, nullable=False, server_default="1"),
    # How much there is to do, in a measure that is the same for all jobs of a queue and model.
    sa.Column("work", sa.Float, nullable=False, server_default="1"),
    # Of the latest claim: whose device time it uses, which part of the device, and the virtual time charged for it.
    sa.Column("pool", sa.Text),
    sa.Column("batch_share", sa.Float, nullable=False, server_default="1"),
    sa.Column("charged", sa.Float, nullable=False, server_default="0"),
    # Measured, over all attempts.
    sa.Column("gpu_seconds", sa.Float, nullable=False, server_default="0"),
    # {"url", "secret"}
    sa.Column("webhook", pg.JSONB(none_as_null=True)),
    # Of the complete spec, and of the spec without its seed; None: never answered from another job.
    sa.Column("cache_key", sa.Text),
    sa.Column("any_seed_key", sa.Text),
    # It waits for the result of this equal job instead of running.
    sa.Column("leader_id", pg.UUID(as_uuid=True), sa.ForeignKey("jobs.id")),
    # How long its artifacts are kept after its end, and when they went.
    sa.Column("retain_seconds", sa.Float),
    _timestamp("artifacts_expired_at"),
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
    sa.CheckConstraint("units > 0 AND batch_limit > 0 AND work > 0", name="sizes"),
    # Only a job that waits can wait for another.
    sa.CheckConstraint("leader_id IS NULL OR state = 'queued'", name="followers_wait"),
    # The order of claims of a tenant within a queue.
    sa.Index(
        "jobs_claim_idx",
        "queue",
        "tenant_id",
        "rank",
        "id",
        postgresql_where=sa.text("state = 'queued' AND leader_id IS NULL"),
    ),
    # Jobs for a loaded model.
    sa.Index(
        "jobs_model_idx",
        "model_key",
        "queue",
        "rank",
        "id",
        postgresql_where=sa.text("state = 'queued' AND leader_id IS NULL AND model_key IS NOT NULL"),
    ),
    # Jobs that fit into a batch.
    sa.Index(
        "jobs_batch_idx",
        "batch_key",
        "queue",
        "rank",
        "id",
        postgresql_where=sa.text("state = 'queued' AND leader_id IS NULL AND batch_key IS NOT NULL"),
    ),
    # How many jobs wait in a queue, of which sort, and since when.
    sa.Index("jobs_waiting_idx", "queue", "leader_id", "available_at", postgresql_where=sa.text(WAITS)),
    # Equal jobs of a tenant, finished or on their way.
    sa.Index(
        "jobs_cache_idx",
        "tenant_id",
        "cache_key",
        "id",
        postgresql_where=sa.text(f"cache_key IS NOT NULL AND {_EQUALS}"),
    ),
    sa.Index(
        "jobs_any_seed_idx",
        "tenant_id",
        "any_seed_key",
        "id",
        postgresql_where=sa.text(f"any_seed_key IS NOT NULL AND {_EQUALS}"),
    ),
    sa.Index("jobs_leader_idx", "leader_id", postgresql_where=sa.text("leader_id IS NOT NULL")),
    # What retention looks through: old rows, and artifacts by their own time or by the operator's.
    sa.Index("jobs_finished_idx", "finished_at", postgresql_where=sa.text("finished_at IS NOT NULL")),
    sa.Index(
        "jobs_retained_idx",
        sa.text(ARTIFACTS_DUE),
        postgresql_where=sa.text(f"{HAS_ARTIFACTS} AND retain_seconds IS NOT NULL"),
    ),
    sa.Index("jobs_kept_idx", "finished_at", postgresql_where=sa.text(f"{HAS_ARTIFACTS} AND retain_seconds IS NULL")),
    # The job, or the dataset, whose image a job that has not ended starts from.
    sa.Index("jobs_init_image_idx", sa.text(f"({INIT_IMAGE_OF})"), postgresql_where=sa.text(STARTS_FROM_IMAGE)),
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

# Which tenants may have something waiting in a queue: the walk of a claim looks at these only. A row is made with a
# tenant's first job and removed by the reconciler when none is left.
tenant_queues = sa.Table(
    "tenant_queues",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column(
        "tenant_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("tenants.id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    _timestamp("created_at", now=True),
)

# What each tenant has had of the device time of a pool of workers.
shares = sa.Table(
    "shares",
    metadata,
    sa.Column("pool", sa.Text, primary_key=True),
    sa.Column(
        "tenant_id",
        pg.UUID(as_uuid=True),
        sa.ForeignKey("tenants.id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
    # Device-seconds over the tenant's weight.
    sa.Column("vtime", sa.Float, nullable=False),
    # The same without what is charged for the jobs that run.
    sa.Column("settled", sa.Float, nullable=False, server_default="0"),
    # What is in vtime beyond both: by how much running jobs had taken longer than was charged, at the latest claims.
    sa.Column("overdue", sa.Float, nullable=False, server_default="0"),
    sa.Column("running", sa.Integer, nullable=False, server_default="0"),
    # Devices that the running jobs take up, parts of batches included, and the sum of these parts, each times the
    # second (since 2026) in which it was claimed: devices * now - device_starts is what they took until now.
    sa.Column("devices", sa.Float, nullable=False, server_default="0"),
    sa.Column("device_starts", sa.Float, nullable=False, server_default="0"),
    # Nothing more of it could be claimed, for nothing waits or it is at its limit: it comes back at the pool's clock.
    sa.Column("idle", sa.Boolean, nullable=False, server_default=sa.false()),
    # By how much it was behind that clock at its latest claim: this much it stays behind when it was idle.
    sa.Column("lag", sa.Float, nullable=False, server_default="0"),
    # The queues of the worker that claimed last.
    sa.Column("queues", pg.ARRAY(sa.Text), nullable=False),
    _timestamp("changed_at", now=True),
    sa.CheckConstraint("running >= 0", name="running"),
    # Written with every claim and every end: without an index on what changes the versions of a row stay on its page
    # and are pruned on the way, and a claim never reads through thousands of dead ones.
)

# Queues from which nothing is claimed.
queue_pauses = sa.Table(
    "queue_pauses",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    _timestamp("paused_at", now=True),
    sa.CheckConstraint(_one_of("queue", QUEUES), name="queue"),
)

# How long jobs took, per unit of work: what estimates rest on.
rates = sa.Table(
    "rates",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    # '': all models of the queue.
    sa.Column("model_key", sa.Text, primary_key=True),
    sa.Column("jobs", sa.BigInteger, nullable=False),
    # Device-seconds per unit of work, mean and variance; older jobs count less and less.
    sa.Column("mean", sa.Float, nullable=False),
    sa.Column("variance", sa.Float, nullable=False),
    _timestamp("changed_at", now=True),
)

# What each tenant used, per UTC day.
usage = sa.Table(
    "usage",
    metadata,
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("queue", sa.Text, primary_key=True),
    # Jobs that ended, and those of them answered from an equal one.
    sa.Column("jobs", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("cached", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("images", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("gpu_seconds", sa.Float, nullable=False, server_default="0"),
)

# What happened to a job, in order; the sequence is assigned under the lock of the job's row.
events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", pg.UUID(as_uuid=True), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True),
    # state, progress, checkpoint, metrics, log
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", pg.JSONB, nullable=False),
    _timestamp("created_at", now=True),
    sa.CheckConstraint("type IN ('state', 'progress', 'checkpoint', 'metrics', 'log')", name="type"),
    # What is dropped some time after the job's end.
    sa.Index("events_progress_idx", "created_at", postgresql_where=sa.text("type = 'progress'")),
)

# Webhooks to deliver and delivered; written in the transaction that ends the job.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
    # Also the webhook-id, the same over all tries.
    sa.Column("id", pg.UUID(as_uuid=True), primary_key=True),
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False),
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
    _timestamp("created_at", now=True),
    # The next try, or when one that is being made counts as lost; None when there is none.
    _timestamp("due_at"),
    sa.CheckConstraint(_one_of("state", ("pending", "delivered", "failed", "gone")), name="state"),
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
    sa.Column("tenant_id", pg.UUID(as_uuid=True), sa.ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    _timestamp("since", now=True),
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
