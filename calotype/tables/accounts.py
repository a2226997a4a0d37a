"""What each tenant has had, and what estimates rest on."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from calotype.tables.columns import belongs_to, metadata, timestamp

# Which tenants may have something waiting in a queue: the walk of a claim looks at these only. A row is made with a
# tenant's first job and removed by the reconciler when none is left.
tenant_queues = sa.Table(
    "tenant_queues",
    metadata,
    sa.Column("queue", sa.Text, primary_key=True),
    belongs_to("tenant_id", "tenants", primary_key=True, index=True),
    timestamp("created_at", now=True),
)

# What each tenant has had of the device time of a pool of workers.
shares = sa.Table(
    "shares",
    metadata,
    sa.Column("pool", sa.Text, primary_key=True),
    belongs_to("tenant_id", "tenants", primary_key=True, index=True),
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
    timestamp("changed_at", now=True),
    sa.CheckConstraint("running >= 0", name="running"),
    # Written with every claim and every end: without an index on what changes the versions of a row stay on its page
    # and are pruned on the way, and a claim never reads through thousands of dead ones.
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
    timestamp("changed_at", now=True),
)

# What each tenant used, per UTC day.
usage = sa.Table(
    "usage",
    metadata,
    belongs_to("tenant_id", "tenants", primary_key=True),
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("queue", sa.Text, primary_key=True),
    # Jobs that ended, and those of them answered from an equal one.
    sa.Column("jobs", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("cached", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("images", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("gpu_seconds", sa.Float, nullable=False, server_default="0"),
)
