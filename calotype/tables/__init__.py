"""Every table, in SQLAlchemy Core, with named constraints; all of one metadata.

The database states what must always hold, so that no code path, ours or an operator's, can break it. A test checks
that the migrations make exactly these tables.
"""

from __future__ import annotations

from calotype.tables.accounts import rates, shares, tenant_queues, usage
from calotype.tables.assets import datasets, model_versions
from calotype.tables.columns import metadata
from calotype.tables.fleet import queue_pauses, workers
from calotype.tables.job import ARTIFACTS_DUE, HAS_ARTIFACTS, INIT_IMAGE_OF, STARTS_FROM_IMAGE, WAITS, jobs
from calotype.tables.job_parts import artifacts, events, idempotency_keys
from calotype.tables.tenancy import api_keys, tenants
from calotype.tables.webhooks import webhook_deliveries, webhook_stops

__all__ = [
    "ARTIFACTS_DUE",
    "HAS_ARTIFACTS",
    "INIT_IMAGE_OF",
    "STARTS_FROM_IMAGE",
    "WAITS",
    "api_keys",
    "artifacts",
    "datasets",
    "events",
    "idempotency_keys",
    "jobs",
    "metadata",
    "model_versions",
    "queue_pauses",
    "rates",
    "shares",
    "tenant_queues",
    "tenants",
    "usage",
    "webhook_deliveries",
    "webhook_stops",
    "workers",
]
