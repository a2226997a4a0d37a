"""Webhooks: what was sent and what became of it, and the secret that signs."""

from __future__ import annotations

from uuid import UUID

from flask import Blueprint
from flask.typing import ResponseReturnValue
from pydantic import Field

from api import paging, schemas, serialize
from api.auth import principal
from api.calls import Answer, call
from api.paging import PageQuery
from api.services import services
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.tenants import Scope
from calotype.webhooks import deliveries, tenant_secrets
from calotype.webhooks.deliveries import Delivery, DeliveryFilter, DeliveryState
from calotype.webhooks.tenant_secrets import TenantSecret

blueprint = Blueprint("webhooks", __name__)


class DeliveryListQuery(PageQuery):
    """Which deliveries; newest first."""

    job: UUID | None = Field(default=None, description="Only those of this job.")
    state: list[DeliveryState] = Field(default=[], description="Any of these states; may be repeated.")


@blueprint.get("/webhooks/deliveries")
@call(
    "Webhooks",
    "List deliveries",
    scope=Scope.JOBS_READ,
    query=DeliveryListQuery,
    answers=[Answer(status=200, description="Newest first.", model=schemas.WebhookDeliveryPage)],
)
def list_webhook_deliveries(query: DeliveryListQuery) -> ResponseReturnValue:
    wanted = DeliveryFilter(job_id=query.job, states=tuple(query.state))
    with transaction(services().engine) as conn:
        page = deliveries.list_deliveries(conn, principal().tenant_id, wanted, _position(query), query.limit)
    data = [_delivery(one) for one in page.items]
    cursor = paging.encode(str(page.items[-1].id), query) if page.has_more else None
    return serialize.answer(schemas.WebhookDeliveryPage(data=data, has_more=page.has_more, next_cursor=cursor))


@blueprint.get("/webhooks/deliveries/<delivery_id>")
@call(
    "Webhooks",
    "Look at a delivery",
    scope=Scope.JOBS_READ,
    answers=[Answer(status=200, description="The delivery and what it sends.", model=schemas.WebhookMessage)],
)
def get_webhook_delivery(delivery_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = deliveries.get_delivery(conn, principal().tenant_id, _parse_id(delivery_id))
    return serialize.answer(_message(found))


@blueprint.post("/webhooks/deliveries/<delivery_id>/replay")
@call(
    "Webhooks",
    "Send a delivery again",
    scope=Scope.JOBS_WRITE,
    description="Whatever became of it, it is sent again under the same id, from the first try on. A URL that had "
    "answered 410 takes webhooks again; other deliveries that were not sent to it wait for a replay of their own.",
    answers=[Answer(status=202, description="The delivery, pending.", model=schemas.WebhookMessage)],
)
def replay_webhook_delivery(delivery_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = deliveries.replay(conn, principal().tenant_id, _parse_id(delivery_id))
    return serialize.answer(_message(found), 202)


@blueprint.get("/webhooks/secret")
@call(
    "Webhooks",
    "Show the secret",
    # Whoever knows it can send messages that look like ours: more than looking.
    scope=Scope.JOBS_WRITE,
    description="Signs the webhooks that bring no secret of their own. It is made with the first call.",
    answers=[Answer(status=200, description="The secret.", model=schemas.WebhookSecret)],
)
def get_webhook_secret() -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        return serialize.answer(_secret(tenant_secrets.get_secret(conn, principal().tenant_id)))


@blueprint.post("/webhooks/secret/rotate")
@call(
    "Webhooks",
    "Rotate the secret",
    scope=Scope.JOBS_WRITE,
    description="Makes a new secret. For a day messages carry a signature by each of the two, so that receivers can "
    "change over without a gap.",
    answers=[Answer(status=200, description="The new secret.", model=schemas.WebhookSecret)],
)
def rotate_webhook_secret() -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        return serialize.answer(_secret(tenant_secrets.rotate_secret(conn, principal().tenant_id)))


def _position(query: DeliveryListQuery) -> UUID | None:
    position = paging.decode(query)
    try:
        return UUID(position) if position is not None else None
    except ValueError as exc:
        raise paging.refused() from exc


def _parse_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound("There is no such webhook delivery.") from exc


def _delivery(value: Delivery) -> schemas.WebhookDelivery:
    return schemas.WebhookDelivery(
        id=value.id,
        job_id=value.job_id,
        type=value.type,
        url=value.url,
        state=value.state,
        attempts=value.attempts,
        tries=[schemas.WebhookTry(**entry) for entry in value.log],
        created_at=value.created_at,
        next_try_at=value.due_at,
    )


def _message(value: Delivery) -> schemas.WebhookMessage:
    return schemas.WebhookMessage(**_delivery(value).model_dump(), body=value.message)


def _secret(value: TenantSecret) -> schemas.WebhookSecret:
    return schemas.WebhookSecret(secret=value.current, previous_until=value.before_until)
