"""What tenants were given by now, as measured, in place of where their latest turn began; an index to count who waits.

No release lies between this and the revision before: workers of that one do not run beside it.
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Jobs that run, by share. Seconds are counted from 2026.
RUNNING = """
    SELECT pool, tenant_id, sum(charged) AS charged, sum(batch_share) AS devices,
        sum(batch_share * date_part('epoch', started_at - TIMESTAMPTZ '2026-01-01 00:00:00+00')) AS starts
    FROM jobs WHERE state IN ('running', 'canceling') AND pool IS NOT NULL GROUP BY pool, tenant_id
"""

UPGRADE = (
    """
    ALTER TABLE shares
        ADD COLUMN settled FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN overdue FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN devices FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN device_starts FLOAT DEFAULT '0' NOT NULL,
        ADD COLUMN lag FLOAT DEFAULT '0' NOT NULL,
        DROP COLUMN began
    """,
    "UPDATE shares SET settled = vtime",
    f"""
    UPDATE shares s SET settled = s.vtime - r.charged, devices = r.devices, device_starts = r.starts
    FROM ({RUNNING}) AS r WHERE r.pool = s.pool AND r.tenant_id = s.tenant_id
    """,  # noqa: S608 - fixed texts
    """
    CREATE INDEX jobs_waiting_idx ON jobs (queue, leader_id, available_at)
        WHERE lease_expires_at IS NULL AND finished_at IS NULL
    """,
)

DOWNGRADE = (
    "DROP INDEX jobs_waiting_idx",
    "ALTER TABLE shares ADD COLUMN began FLOAT DEFAULT '0' NOT NULL",
    "UPDATE shares SET began = least(settled, vtime), vtime = vtime - overdue",
    """
    ALTER TABLE shares
        DROP COLUMN settled, DROP COLUMN overdue, DROP COLUMN devices, DROP COLUMN device_starts, DROP COLUMN lag
    """,
)


def upgrade() -> None:
    for statement in UPGRADE:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWNGRADE:
        op.execute(statement)
