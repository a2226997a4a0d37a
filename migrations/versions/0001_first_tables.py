"""The first tables: tenants, keys, workers, jobs, artifacts, datasets and models.

Needs Postgres 15 (NULLS NOT DISTINCT).
"""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE tenants (
            id UUID NOT NULL,
            name TEXT NOT NULL,
                max_queued INTEGER,
                created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT tenants_pkey PRIMARY KEY (id),
                CONSTRAINT tenants_limits_check CHECK (max_queued >= 0),
            CONSTRAINT tenants_name_check CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
            CONSTRAINT tenants_name_key UNIQUE (name)
    )
    """,
    """
    CREATE TABLE api_keys (
            id UUID NOT NULL,
            tenant_id UUID NOT NULL,
            name TEXT NOT NULL,
            prefix TEXT NOT NULL,
            sha256 BYTEA NOT NULL,
            scopes TEXT[] NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            expires_at TIMESTAMP WITH TIME ZONE,
            revoked_at TIMESTAMP WITH TIME ZONE,
            last_used_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT api_keys_pkey PRIMARY KEY (id),
            CONSTRAINT api_keys_sha256_check CHECK (octet_length(sha256) = 32),
            CONSTRAINT api_keys_scopes_check CHECK (cardinality(scopes) > 0),
            CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE
            CASCADE,
            CONSTRAINT api_keys_sha256_key UNIQUE (sha256)
    )
    """,
    """
    CREATE INDEX api_keys_tenant_id_idx ON api_keys (tenant_id)
    """,
    """
    CREATE TABLE workers (
            id UUID NOT NULL,
            name TEXT NOT NULL,
            hostname TEXT NOT NULL,
            pid INTEGER NOT NULL,
            queues TEXT[] NOT NULL,
            device JSONB NOT NULL,
            version TEXT NOT NULL,
            state TEXT NOT NULL,
            loaded_models TEXT[] DEFAULT '{}' NOT NULL,
            started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            retired_at TIMESTAMP WITH TIME ZONE,
            CONSTRAINT workers_pkey PRIMARY KEY (id),
            CONSTRAINT workers_state_check CHECK (state IN ('starting', 'idle', 'busy', 'draining'))
    )
    """,
    """
    CREATE TABLE jobs (
            id UUID NOT NULL,
            tenant_id UUID NOT NULL,
            kind TEXT NOT NULL,
            family TEXT NOT NULL,
            queue TEXT NOT NULL,
            model TEXT,
            spec JSONB NOT NULL,
            state TEXT NOT NULL,
            priority SMALLINT NOT NULL,
            rank TIMESTAMP WITH TIME ZONE NOT NULL,
            attempt INTEGER DEFAULT '0' NOT NULL,
            max_attempts INTEGER NOT NULL,
            epoch BIGINT DEFAULT '0' NOT NULL,
            worker_id UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            available_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            started_at TIMESTAMP WITH TIME ZONE,
            finished_at TIMESTAMP WITH TIME ZONE,
            expires_at TIMESTAMP WITH TIME ZONE,
            lease_expires_at TIMESTAMP WITH TIME ZONE,
            timeout_seconds FLOAT,
            progress JSONB,
            checkpoint JSONB,
            result JSONB,
            error JSONB,
            metadata JSONB DEFAULT '{}' NOT NULL,
            retried_from UUID,
            revision BIGINT DEFAULT '0' NOT NULL,
            CONSTRAINT jobs_pkey PRIMARY KEY (id),
            CONSTRAINT jobs_kind_check CHECK (kind IN ('train', 'generate', 'benchmark')),
            CONSTRAINT jobs_family_check CHECK (family IN ('diffusion', 'gan', 'hybrid', 'compliance')),
            CONSTRAINT jobs_queue_check CHECK (queue IN ('diffusion.train', 'diffusion.generate',
            'diffusion.benchmark', 'gan.train', 'gan.generate', 'gan.benchmark', 'hybrid.train',
            'hybrid.generate', 'hybrid.benchmark', 'compliance.train', 'compliance.generate',
            'compliance.benchmark')),
            CONSTRAINT jobs_state_check CHECK (state IN ('queued', 'running', 'canceling', 'succeeded',
            'failed', 'canceled', 'expired')),
            CONSTRAINT jobs_priority_check CHECK (priority BETWEEN 0 AND 9),
            CONSTRAINT jobs_counters_check CHECK (attempt >= 0 AND max_attempts > 0 AND epoch >= 0),
            CONSTRAINT jobs_held_has_lease_check CHECK ((state IN ('canceling', 'running')) =
            (lease_expires_at IS NOT NULL)),
            CONSTRAINT jobs_terminal_has_end_check CHECK ((state IN ('canceled', 'expired', 'failed',
            'succeeded')) = (finished_at IS NOT NULL)),
            CONSTRAINT jobs_succeeded_has_result_check CHECK ((state = 'succeeded') = (result IS NOT
            NULL)),
            CONSTRAINT jobs_failed_has_error_check CHECK ((state IN ('failed', 'expired')) = (error IS
            NOT NULL)),
            CONSTRAINT jobs_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id),
            CONSTRAINT jobs_worker_id_fkey FOREIGN KEY(worker_id) REFERENCES workers (id) ON DELETE SET
            NULL,
            CONSTRAINT jobs_retried_from_fkey FOREIGN KEY(retried_from) REFERENCES jobs (id) ON DELETE
            SET NULL
    )
    """,
    """
    CREATE INDEX jobs_claim_idx ON jobs (queue, rank, id) WHERE state = 'queued'
    """,
    """
    CREATE INDEX jobs_deadline_idx ON jobs (expires_at) WHERE state = 'queued' AND expires_at IS NOT
        NULL
    """,
    """
    CREATE INDEX jobs_lease_idx ON jobs (lease_expires_at) WHERE state IN ('running', 'canceling')
    """,
    """
    CREATE INDEX jobs_queued_idx ON jobs (tenant_id) WHERE state = 'queued'
    """,
    """
    CREATE INDEX jobs_tenant_idx ON jobs (tenant_id, id DESC)
    """,
    """
    CREATE INDEX jobs_worker_idx ON jobs (worker_id) WHERE worker_id IS NOT NULL
    """,
    """
    CREATE INDEX jobs_retried_from_idx ON jobs (retried_from) WHERE retried_from IS NOT NULL
    """,
    """
    CREATE TABLE idempotency_keys (
            tenant_id UUID NOT NULL,
            key TEXT NOT NULL,
            body_sha256 BYTEA NOT NULL,
            job_id UUID NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant_id, key),
            CONSTRAINT idempotency_keys_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON
            DELETE CASCADE,
            CONSTRAINT idempotency_keys_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE
            CASCADE
    )
    """,
    """
    CREATE INDEX idempotency_keys_job_id_idx ON idempotency_keys (job_id)
    """,
    """
    CREATE INDEX idempotency_keys_created_at_idx ON idempotency_keys (created_at)
    """,
    """
    CREATE TABLE artifacts (
            job_id UUID NOT NULL,
            name TEXT NOT NULL,
            object_key TEXT NOT NULL,
            content_type TEXT NOT NULL,
            bytes BIGINT NOT NULL,
            sha256 TEXT NOT NULL,
            position INTEGER NOT NULL,
            width INTEGER,
            height INTEGER,
            seed BIGINT,
            CONSTRAINT artifacts_pkey PRIMARY KEY (job_id, name),
            CONSTRAINT artifacts_counters_check CHECK (bytes >= 0 AND position >= 0),
            CONSTRAINT artifacts_sha256_check CHECK (sha256 ~ '^[0-9a-f]{64}$'),
            CONSTRAINT artifacts_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX artifacts_object_key_idx ON artifacts (object_key)
    """,
    """
    CREATE TABLE datasets (
            id TEXT NOT NULL,
            tenant_id UUID,
            name TEXT NOT NULL,
            state TEXT NOT NULL,
            digest TEXT,
            object_key TEXT NOT NULL,
            bytes BIGINT DEFAULT '0' NOT NULL,
            images INTEGER DEFAULT '0' NOT NULL,
            captions BOOLEAN DEFAULT false NOT NULL,
            labels TEXT[] DEFAULT '{}' NOT NULL,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT datasets_pkey PRIMARY KEY (id),
            CONSTRAINT datasets_state_check CHECK (state IN ('uploading', 'ready')),
            CONSTRAINT datasets_ready_has_digest_check CHECK ((state = 'ready') = (digest IS NOT NULL)),
            CONSTRAINT datasets_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON DELETE
            CASCADE
    )
    """,
    """
    CREATE UNIQUE INDEX datasets_digest_key ON datasets (tenant_id, digest) NULLS NOT DISTINCT WHERE
        digest IS NOT NULL
    """,
    """
    CREATE INDEX datasets_name_idx ON datasets (tenant_id, name)
    """,
    """
    CREATE INDEX datasets_object_key_idx ON datasets (object_key)
    """,
    """
    CREATE TABLE model_versions (
            id UUID NOT NULL,
            tenant_id UUID,
            name TEXT NOT NULL,
            version INTEGER NOT NULL,
            family TEXT NOT NULL,
            architecture TEXT NOT NULL,
            base TEXT,
            digest TEXT NOT NULL,
            files JSONB NOT NULL,
            source JSONB NOT NULL,
            licence TEXT,
            parameters JSONB DEFAULT '{}' NOT NULL,
            job_id UUID,
            created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
            CONSTRAINT model_versions_pkey PRIMARY KEY (id),
            CONSTRAINT model_versions_family_check CHECK (family IN ('diffusion', 'gan', 'hybrid',
            'compliance')),
            CONSTRAINT model_versions_version_check CHECK (version > 0),
            CONSTRAINT model_versions_name_check CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,63}$'),
            CONSTRAINT model_versions_tenant_id_fkey FOREIGN KEY(tenant_id) REFERENCES tenants (id) ON
            DELETE CASCADE
    )
    """,
    """
    CREATE UNIQUE INDEX model_versions_name_key ON model_versions (tenant_id, name, version DESC) NULLS
        NOT DISTINCT
    """,
)

TABLES = (
    "model_versions",
    "datasets",
    "artifacts",
    "idempotency_keys",
    "jobs",
    "workers",
    "api_keys",
    "tenants",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
