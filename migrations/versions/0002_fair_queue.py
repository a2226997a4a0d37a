"""Fair share, batches, the request cache, events, webhooks, rates and usage.

A worker of the release before goes on claiming beside new ones: what it claims has no pool and is charged to nobody.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    ALTER TABLE tenants
        ADD COLUMN weight FLOAT DEFAULT '1' NOT NULL,
        ADD COLUMN max_running INTEGER,
        ADD COLUMN webhook_secret TEXT,
        ADD COLUMN webhook_secret_before TEXT,
        ADD COLUMN webhook_secret_rotated_at TIMESTAMP WITH TIME ZONE,
        ADD CONSTRAINT tenants_share_check CHECK (weight > 0 AND weight < 'Infinity' AND max_running >= 0)
    """,
    """
    ALTER TABLE workers
        ADD COLUMN pool TEXT DEFAULT 'default' NOT NULL,
        ADD COLUMN looked_at TIMESTAMP WITH TIME ZONE,
        ADD COLUMN draining BOOLEAN DEFAULT false NOT NULL
    """,
    """
    ALTER TABLE jobs
        ADD COLUMN event_seq BIGINT DEFAULT '0' NOT NULL,
        ADD COLUMN model_key TEXT,
        ADD COLUMN batch_key TEXT,
        ADD COLUMN units INTEGER DEFAULT '1' NOT NULL,
        ADD COLUMN batch_limit INTEGER DEFAULT '1' NOT NULL,
        ADD COLUMN work FLOAT DEFAULT '1' NOT NULL,
        ADD COLUMN pool TEXT,
        ADD COLUMN batch_share FLOAT DEFAULT '1' NOT NULL,
        ADD COLUMN charged FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN gpu_seconds FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN webhook JSONB,
        ADD COLUMN cache_key TEXT,
        ADD COLUMN any_seed_key TEXT,
        ADD COLUMN leader_id UUID,
        ADD COLUMN retain_seconds FLOAT,
        ADD COLUMN artifacts_expired_at TIMESTAMP WITH TIME ZONE,
        ADD CONSTRAINT jobs_leader_id_fkey FOREIGN KEY(leader_id) REFERENCES jobs (id),
        ADD CONSTRAINT jobs_sizes_check CHECK (units > 0 AND batch_limit > 0 AND work > 0),
        ADD CONSTRAINT jobs_followers_wait_check CHECK (leader_id IS NULL OR state = 'queued')
    """,
    """
    DROP INDEX jobs_claim_idx
    """,
    """
    CREATE INDEX jobs_any_seed_idx ON jobs (tenant_id, any_seed_key, id) WHERE any_seed_key IS NOT NULL AND
            artifacts_expired_at IS NULL AND state IN ('queued', 'running', 'canceling', 'succeeded')
    """,
    """
    CREATE INDEX jobs_batch_idx ON jobs (batch_key, queue, rank, id) WHERE state = 'queued' AND leader_id IS
            NULL AND batch_key IS NOT NULL
    """,
    """
    CREATE INDEX jobs_cache_idx ON jobs (tenant_id, cache_key, id) WHERE cache_key IS NOT NULL AND
            artifacts_expired_at IS NULL AND state IN ('queued', 'running', 'canceling', 'succeeded')
    """,
    """
    CREATE INDEX jobs_claim_idx ON jobs (queue, tenant_id, rank, id) WHERE state = 'queued' AND leader_id IS
            NULL
    """,
    """
    CREATE INDEX jobs_finished_idx ON jobs (finished_at) WHERE finished_at IS NOT NULL
    """,
    """
    CREATE INDEX jobs_init_image_idx ON jobs ((split_part((spec -> 'input') ->> 'init_image', '/', 1))) WHERE
            state IN ('queued', 'running', 'canceling') AND ((spec -> 'input') ->> 'init_image') IS NOT NULL
    """,
    """
    CREATE INDEX jobs_kept_idx ON jobs (finished_at) WHERE state = 'succeeded' AND artifacts_expired_at IS NULL
            AND retain_seconds IS NULL
    """,
    """
    CREATE INDEX jobs_retained_idx ON jobs (((finished_at AT TIME ZONE 'UTC') + make_interval(secs =>
            retain_seconds))) WHERE state = 'succeeded' AND artifacts_expired_at IS NULL AND retain_seconds IS
            NOT NULL
    """,
    """
    CREATE INDEX jobs_leader_idx ON jobs (leader_id) WHERE leader_id IS NOT NULL
    """,
    """
    CREATE INDEX jobs_model_idx ON jobs (model_key, queue, rank, id) WHERE state = 'queued' AND leader_id IS
            NULL AND model_key IS NOT NULL
    """,
    """
    CREATE TABLE tenant_queues (
        queue TEXT NOT NULL,
        tenant_id UUID NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT tenant_queues_pkey PRIMARY KEY (queue, tenant_id),
        CONSTRAINT tenant_queues_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE
            CASCADE
    )
    """,
    """
    CREATE INDEX tenant_queues_tenant_id_idx ON tenant_queues (tenant_id)
    """,
    """
    CREATE TABLE shares (
        pool TEXT NOT NULL,
        tenant_id UUID NOT NULL,
        vtime FLOAT NOT NULL,
        began FLOAT DEFAULT '0' NOT NULL,
        running INTEGER DEFAULT '0' NOT NULL,
        idle BOOLEAN DEFAULT false NOT NULL,
        queues TEXT[] NOT NULL,
        changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT shares_pkey PRIMARY KEY (pool, tenant_id),
        CONSTRAINT shares_running_check CHECK (running >= 0),
        CONSTRAINT shares_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX shares_tenant_id_idx ON shares (tenant_id)
    """,
    """
    CREATE TABLE queue_pauses (
        queue TEXT NOT NULL,
        reason TEXT DEFAULT '' NOT NULL,
        paused_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT queue_pauses_pkey PRIMARY KEY (queue),
        CONSTRAINT queue_pauses_queue_check CHECK (queue IN ('diffusion.train', 'diffusion.generate',
            'diffusion.benchmark', 'gan.train', 'gan.generate', 'gan.benchmark', 'hybrid.train',
            'hybrid.generate', 'hybrid.benchmark', 'compliance.train', 'compliance.generate',
            'compliance.benchmark'))
    )
    """,
    """
    CREATE TABLE rates (
        queue TEXT NOT NULL,
        model_key TEXT NOT NULL,
        jobs BIGINT NOT NULL,
        mean FLOAT NOT NULL,
        variance FLOAT NOT NULL,
        changed_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT rates_pkey PRIMARY KEY (queue, model_key)
    )
    """,
    """
    CREATE TABLE usage (
        tenant_id UUID NOT NULL,
        day DATE NOT NULL,
        queue TEXT NOT NULL,
        jobs BIGINT DEFAULT '0' NOT NULL,
        cached BIGINT DEFAULT '0' NOT NULL,
        images BIGINT DEFAULT '0' NOT NULL,
        gpu_seconds FLOAT DEFAULT '0' NOT NULL,
        CONSTRAINT usage_pkey PRIMARY KEY (tenant_id, day, queue),
        CONSTRAINT usage_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE TABLE events (
        job_id UUID NOT NULL,
        seq BIGINT NOT NULL,
        type TEXT NOT NULL,
        data JSONB NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT events_pkey PRIMARY KEY (job_id, seq),
        CONSTRAINT events_type_check CHECK (type IN ('state', 'progress', 'checkpoint', 'metrics', 'log')),
        CONSTRAINT events_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
    )
    """,
    "CREATE INDEX events_progress_idx ON events (created_at) WHERE type = 'progress'",
    """
    CREATE TABLE webhook_deliveries (
        id UUID NOT NULL,
        tenant_id UUID NOT NULL,
        job_id UUID NOT NULL,
        url TEXT NOT NULL,
        host TEXT NOT NULL,
        secret TEXT,
        type TEXT NOT NULL,
        body TEXT NOT NULL,
        state TEXT DEFAULT 'pending' NOT NULL,
        attempts INTEGER DEFAULT '0' NOT NULL,
        attempts_before INTEGER DEFAULT '0' NOT NULL,
        log JSONB DEFAULT '[]' NOT NULL,
        created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        due_at TIMESTAMP WITH TIME ZONE,
        CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
        CONSTRAINT webhook_deliveries_state_check CHECK (state IN ('pending', 'delivered', 'failed', 'gone')),
        CONSTRAINT webhook_deliveries_pending_is_due_check CHECK ((state = 'pending') = (due_at IS NOT NULL)),
        CONSTRAINT webhook_deliveries_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE
            CASCADE
    )
    """,
    """
    CREATE INDEX webhook_deliveries_created_idx ON webhook_deliveries (created_at)
    """,
    """
    CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (due_at) WHERE state = 'pending'
    """,
    """
    CREATE INDEX webhook_deliveries_job_idx ON webhook_deliveries (job_id)
    """,
    """
    CREATE INDEX webhook_deliveries_tenant_idx ON webhook_deliveries (tenant_id, id DESC)
    """,
    """
    CREATE TABLE webhook_stops (
        tenant_id UUID NOT NULL,
        url TEXT NOT NULL,
        since TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
        CONSTRAINT webhook_stops_pkey PRIMARY KEY (tenant_id, url),
        CONSTRAINT webhook_stops_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
    )
    """,
    """
    INSERT INTO tenant_queues (queue, tenant_id)
    SELECT DISTINCT queue, tenant_id FROM jobs WHERE state IN ('queued', 'running', 'canceling')
    """,
)

TABLES = (
    "webhook_stops",
    "webhook_deliveries",
    "events",
    "usage",
    "rates",
    "queue_pauses",
    "shares",
    "tenant_queues",
)

#: Column names by table; their constraints and indexes go with them.
COLUMNS = {
    "jobs": (
        "event_seq",
        "model_key",
        "batch_key",
        "units",
        "batch_limit",
        "work",
        "pool",
        "batch_share",
        "charged",
        "gpu_seconds",
        "webhook",
        "cache_key",
        "any_seed_key",
        "leader_id",
        "retain_seconds",
        "artifacts_expired_at",
    ),
    "workers": ("pool", "looked_at", "draining"),
    "tenants": ("weight", "max_running", "webhook_secret", "webhook_secret_before", "webhook_secret_rotated_at"),
}


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    for table, columns in COLUMNS.items():
        for column in columns:
            op.drop_column(table, column)
    op.drop_index("jobs_finished_idx", "jobs")
    op.drop_index("jobs_init_image_idx", "jobs")
    op.create_index("jobs_claim_idx", "jobs", ["queue", "rank", "id"], postgresql_where="state = 'queued'")
