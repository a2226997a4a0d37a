"""What every request has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints, field_validator

from calotype.jobs import CacheMode
from calotype.scheduling import DEFAULT_PRIORITY, PRIORITIES
from calotype.webhooks.signing import key_of
from calotype.webhooks.targets import LONGEST_URL, parse_url

#: The largest whole number that every JSON reader keeps exactly.
MAX_SEED = 2**53 - 1

MODEL_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
MODEL_REF = r"^[a-z0-9][a-z0-9._-]{0,63}(@[1-9][0-9]{0,8})?$"

ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME)]
#: ``name`` (the latest version) or ``name@version``.
ModelRef = Annotated[str, StringConstraints(pattern=MODEL_REF)]
#: A dataset's id (``ds_…``) or its name.
DatasetRef = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class Strict(BaseModel):
    """Frozen, exact about types, and refusing what it does not know."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class Adapter(Strict):
    """A LoRA laid over the base model."""

    model: ModelRef
    """The adapter, `name` or `name@version`."""
    scale: float = Field(default=1.0, ge=-2.0, le=2.0)
    """How strongly it acts; 1 is as trained."""


class Webhook(Strict):
    """Who is told when the job has ended: a POST that is signed as Standard Webhooks has it."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_URL)]
    """`https://…` on a public address; others and `http://` only where the operator allows the network."""
    secret: SecretStr | None = None
    """`whsec_` and the base64 of 24 to 64 random bytes; signs the message, and is never shown again. The tenant's own
    secret (`GET /v1/webhooks/secret`) when null."""

    @field_validator("url")
    @classmethod
    def _can_be_sent_to(cls, value: str) -> str:
        parse_url(value)
        return value

    @field_validator("secret")
    @classmethod
    def _can_sign(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            key_of(value.get_secret_value())
        return value


class Request(Strict):
    """The fields beside `input` that every job has."""

    priority: int = Field(default=DEFAULT_PRIORITY, ge=PRIORITIES.start, le=PRIORITIES.stop - 1)
    """0 to 9, higher first."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """How often it is tried when a worker is lost or a failure is retryable."""
    deadline_seconds: float | None = Field(default=None, gt=0, le=31_536_000)
    """The job expires when it has not started this long after its submission."""
    timeout_seconds: float | None = Field(default=None, gt=0, le=31_536_000)
    """The longest one attempt may run."""
    retain_seconds: float | None = Field(default=None, gt=0, le=315_360_000)
    """The artifacts are deleted this long after the job's end. When null: as the operator has set, at the latest with
    the job."""
    metadata: dict[MetadataKey, MetadataValue] = Field(default_factory=dict, max_length=32)
    """Your own labels; returned with the job, never interpreted."""
    webhook: Webhook | None = None
    """Told when the job has ended, however it ended."""


class GenerateRequest(Request):
    """What every job that makes images has beside that."""

    cache: CacheMode = "use"
    """`use`: the images of an equal job of yours, seed included, answer this one. `any_seed`: those of whatever seed.
    `bypass`: make them anew, and for this job alone."""
