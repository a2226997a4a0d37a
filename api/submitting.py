"""From a parsed request to a recorded job: the same for one job and for each of many."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import sqlalchemy as sa

from api.services import Services
from calotype import idempotency, queue, specs, submission
from calotype.database import in_transaction, statement, undid_deadlock
from calotype.errors import CalotypeError, DependencyDown, FieldError, Invalid
from calotype.jobs import Job
from calotype.references import Held, Memory, Remembered
from calotype.settings import Settings
from calotype.webhooks.targets import AddressPolicy, parse_url


def submit(here: Services, tenant_id: UUID, body: specs.JobRequest, key: str | None) -> Job:
    """Records one job, or finds the one that this key made before.

    Raises:
        Invalid, NotFound, LimitExceeded: nothing was written.
    """
    check_webhook(body, here.settings)
    job = _at_once(here, tenant_id, body, key)
    if job is not None:
        return job
    return in_transaction(
        here.engine, lambda conn: record(conn, here.settings, tenant_id, body, key, memory=here.memory)
    )


def _at_once(here: Services, tenant_id: UUID, body: specs.JobRequest, key: str | None) -> Job | None:
    """By one statement, which is what most jobs need; None when it takes more, be it to say what is wrong."""
    references = Remembered(here.memory, tenant_id)
    try:
        new = submission.complete(references, tenant_id, body)
    except CalotypeError:
        # Not remembered, or wrong by what is remembered.
        return None
    if key is not None:
        new = replace(new, request_key=idempotency.RequestKey.of(key, body))
    try:
        with statement(here.statements) as conn:
            return queue.submit_at_once(conn, new, references.used)
    except DependencyDown as exc:
        if not undid_deadlock(exc):
            raise
        return None


def record(
    conn: sa.Connection,
    settings: Settings,
    tenant_id: UUID,
    body: specs.JobRequest,
    key: str | None,
    memory: Memory | None = None,
) -> Job:
    """Records a job with its key in a transaction of many, or finds the one that this key made before.

    ``memory`` learns what the names of models mean.

    Raises:
        Invalid, NotFound, LimitExceeded: nothing was written.
    """
    check_webhook(body, settings)
    references = Held(conn, tenant_id, memory)
    if key is None:
        return queue.submit(conn, submission.complete(references, tenant_id, body))
    given = idempotency.RequestKey.of(key, body)
    try:
        return queue.submit(conn, replace(submission.complete(references, tenant_id, body), request_key=given))
    except CalotypeError:
        # Whatever would be said of a new request, its model gone or the limit reached: a repeated one has its job.
        known = idempotency.recall(conn, tenant_id, given)
        if known is None:
            raise
        return queue.get(conn, tenant_id, known)


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
