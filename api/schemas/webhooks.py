"""What is told of ended jobs, and what signs it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from api.schemas.answers import Answer, Page
from calotype.webhooks.deliveries import DeliveryState


class WebhookTry(Answer):
    """One try of a delivery."""

    at: datetime
    status_code: int | None = Field(description="What the receiver answered; null: nothing.")
    error: str | None = Field(description="Why it counts as failed; null: the receiver has the message.")
    seconds: float = Field(description="How long it took.")
    answer: str | None = Field(description="The beginning of an answer that was no success.")


class WebhookDelivery(Answer):
    """A message about an ended job, and what became of it."""

    id: UUID = Field(description="Also the `webhook-id`: the same over all tries.")
    job_id: UUID
    type: str = Field(description="e.g. `job.succeeded`")
    url: str
    state: DeliveryState = Field(description="`gone`: a receiver answered 410, and its URL is sent nothing more.")
    attempts: int = Field(description="Tries that were begun.")
    tries: list[WebhookTry] = Field(description="The latest ones, in order.")
    created_at: datetime
    next_try_at: datetime | None


class WebhookMessage(WebhookDelivery):
    """A delivery with what is sent."""

    body: dict[str, Any] = Field(description="The body, before it is written as text and signed.")


class WebhookDeliveryPage(Page[WebhookDelivery]):
    """Deliveries, newest first."""


class WebhookSecret(Answer):
    """What signs the webhooks of this tenant that bring no secret of their own."""

    secret: str = Field(description="`whsec_…`; keep it where the receiver can read it.")
    previous_until: datetime | None = Field(
        description="Until then messages are also signed with the secret before; null: with this one alone."
    )
