"""The jobs, and the indexes by which they are found."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.jobs import HELD, QUEUES, TERMINAL, Family, Kind, State
from calotype.tables.columns import metadata, one_of, timestamp

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
    timestamp("created_at", now=True),
    timestamp("available_at", now=True),
    timestamp("started_at"),
    timestamp("finished_at"),
    timestamp("expires_at"),
    timestamp("lease_expires_at"),
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
    timestamp("artifacts_expired_at"),
    sa.CheckConstraint(one_of("kind", Kind), name="kind"),
    sa.CheckConstraint(one_of("family", Family), name="family"),
    sa.CheckConstraint(one_of("queue", QUEUES), name="queue"),
    sa.CheckConstraint(one_of("state", State), name="state"),
    sa.CheckConstraint("priority BETWEEN 0 AND 9", name="priority"),
    sa.CheckConstraint("attempt >= 0 AND max_attempts > 0 AND epoch >= 0", name="counters"),
    # A job is held exactly while it runs.
    sa.CheckConstraint(f"({one_of('state', sorted(HELD))}) = (lease_expires_at IS NOT NULL)", name="held_has_lease"),
    # A job has an end exactly when it ended.
    sa.CheckConstraint(f"({one_of('state', sorted(TERMINAL))}) = (finished_at IS NOT NULL)", name="terminal_has_end"),
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
