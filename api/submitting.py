"""From a parsed request to a recorded job: the same for one job and for each of many."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from calotype import idempotency, queue, specs, submission
from calotype.errors import FieldError, Invalid
from calotype.jobs import Job
from calotype.settings import Settings
from calotype.webhooks.targets import AddressPolicy, parse_url


def record(conn: sa.Connection, settings: Settings, tenant_id: UUID, body: specs.JobRequest, key: str | None) -> Job:
    """Records the job, or finds the one that this key made before; both or neither.

    Raises:
        Invalid, NotFound, LimitExceeded: nothing was written.
    """
    check_webhook(body, settings)
    known = idempotency.recall(conn, tenant_id, key, body) if key is not None else None
    if known is not None:
        return queue.get(conn, tenant_id, known)
    job = queue.submit(conn, submission.prepare(conn, tenant_id, body))
    if key is not None:
        idempotency.remember(conn, tenant_id, key, body, job.id)
    return job


def check_webhook(body: specs.JobRequest, settings: Settings) -> None:
    """Refuses a webhook to an address that is not allowed; a name is resolved when there is something to send.

    Raises:
        Invalid: names `webhook.url`.
    """
    if body.webhook is None:
        return
    policy = AddressPolicy.of(settings.webhook_private_addresses)
    refusal = policy.refusal(parse_url(body.webhook.url))
    if refusal is not None:
        raise Invalid(errors=[FieldError(loc=("webhook", "url"), msg=refusal)])
