"""The JSON that the API answers, as types: what `/openapi.json` shows is what is sent."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from calotype.jobs import Family, Kind, State
from calotype.webhooks.deliveries import DeliveryState

ItemT = TypeVar("ItemT")


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Page(Answer, Generic[ItemT]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    has_more: bool = Field(description="Whether there is another page.")
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null on the last.")


# --- Jobs ---


class Progress(Answer):
    """How far a running job is."""

    fraction: float = Field(ge=0, le=1)
    step: int
    total: int
    stage: str = Field(description="What is being done, e.g. `denoising`.")
    eta_seconds: float | None = Field(description="Expected seconds to the end, where known.")


class Artifact(Answer):
    """A file that a job published."""

    name: str
    content_type: str
    bytes: int
    sha256: str
    width: int | None = Field(description="Pixels; null for what is not an image.")
    height: int | None
    seed: int | None = Field(description="Makes this image again.")
    url: str = Field(description="Presigned: needs no key, and works until `url_expires_at`.")
    url_expires_at: datetime


class JobError(Answer):
    """Why a job failed."""

    code: str = Field(description="Stable, e.g. `out_of_memory`.")
    title: str
    detail: str
    retryable: bool = Field(description="Whether submitting the job again may go better.")


class JobUrls(Answer):
    """Paths of what can be done with a job."""

    self: str
    events: str
    cancel: str
    retry: str
    explain: str


class Job(Answer):
    """A job: what was asked, where it stands, what came out."""

    id: UUID = Field(description="UUIDv7: sorts by time of submission.")
    kind: Kind
    family: Family
    model: str | None = Field(description="The pinned model, `name@version`.")
    state: State
    priority: int
    attempt: int = Field(description="Attempts that were started; an interrupted one that lost nothing is not counted.")
    max_attempts: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="When the job expires unless it has started.")
    progress: Progress | None
    spec: dict[str, Any] = Field(description="What was asked, completed with the defaults that were used.")
    result: dict[str, Any] | None
    artifacts: list[Artifact]
    artifacts_expired_at: datetime | None = Field(description="When its artifacts were deleted, at their time.")
    error: JobError | None
    metadata: dict[str, str]
    retried_from: UUID | None = Field(description="The job that this one repeats.")
    urls: JobUrls


class JobPage(Page[Job]):
    """Jobs."""


class Event(Answer):
    """One thing that happened to a job."""

    seq: int = Field(description="From 1, in the order of what happened.")
    type: Literal["state", "progress", "checkpoint", "metrics", "log"]
    created_at: datetime
    data: dict[str, Any] = Field(description="What is in it depends on the type.")


class EventPage(Page[Event]):
    """Events of a job, oldest first."""

    next_cursor: str | None = Field(description="Give it as `after` to get the next page; null on the last.")


# --- Many jobs at once ---


class BulkLine(BaseModel):
    """One line of a bulk submission: a request as `POST /v1/jobs` takes it, and beside its members:"""

    model_config = ConfigDict(extra="allow")

    kind: Kind
    idempotency_key: str | None = Field(
        default=None, description="Does for this line what the header `Idempotency-Key` does for a single job."
    )


class BulkAnswer(Answer):
    """What became of one line: `job` when it was accepted, else `problem`."""

    index: int = Field(description="Number of the line, from 0; empty lines are not counted.")
    status: int = Field(description="As `POST /v1/jobs` would have answered: 202, 422, 429, …")
    job: Job | None = None
    problem: Problem | None = None
    retry_after: float | None = Field(default=None, description="Seconds to wait before another try, with 429 and 503.")


# --- Webhooks ---


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


# --- Datasets ---


class Dataset(Answer):
    """A validated set of images."""

    id: str = Field(description="`ds_…`")
    name: str
    shared: bool = Field(description="Whether it belongs to every tenant and cannot be deleted.")
    digest: str = Field(description="sha256 of the content.")
    bytes: int
    images: int
    captions: bool = Field(description="Whether its images have captions.")
    labels: list[str]
    created_at: datetime


class DatasetUpload(Answer):
    """Where to put the archive of a dataset."""

    id: str = Field(description="The id the dataset will have, unless its content is there already.")
    name: str
    method: Literal["PUT"] = "PUT"
    url: str = Field(description="Presigned: send the archive's bytes there, without the API key.")
    url_expires_at: datetime
    complete: str = Field(description="Path to POST to when the archive is there.")


class DatasetPage(Page[Dataset]):
    """Datasets."""


# --- Models ---


class ModelFile(Answer):
    path: str
    bytes: int
    sha256: str


class ModelVersion(Answer):
    """One version of a model."""

    ref: str = Field(description="`name@version`; what a job pins.")
    name: str
    version: int
    family: Family
    architecture: str = Field(description="e.g. `sd3`, `lora`")
    base: str | None = Field(description="For adapters: the model they fit.")
    shared: bool = Field(description="Whether it belongs to every tenant and cannot be deleted.")
    digest: str
    bytes: int = Field(description="Of all files; 0 for a hub model, whose files a worker fetches.")
    files: list[ModelFile]
    source: dict[str, Any] = Field(description="Where it came from: `type` is starter, s3, hub or train.")
    licence: str | None
    parameters: dict[str, Any] = Field(description="Sizes, steps and defaults that it supports.")
    job_id: UUID | None = Field(description="The train job that made it.")
    created_at: datetime


class Model(ModelVersion):
    """A model: its latest version, or the one that was asked for, and which others there are."""

    versions: list[int] = Field(description="All versions, latest first.")


class ModelPage(Page[Model]):
    """Models."""


# --- Fleet ---


class Queue(Answer):
    """A queue, over all tenants."""

    name: str = Field(description="`<family>.<kind>`")
    depth: int = Field(description="Jobs that wait.")
    runnable: int = Field(description="Those of them that may start now; the others wait out a backoff.")
    running: int
    oldest_wait_seconds: float = Field(description="How long the oldest runnable job has waited; 0 for none.")
    workers: int = Field(description="Live workers that serve it.")
    at_least: bool = Field(
        description="Whether `depth` and `runnable` may be more: beyond 100,000 waiting jobs nobody counts on."
    )
    paused: bool = Field(description="Whether nothing is taken from it until it is resumed.")
    pause_reason: str | None = Field(description="What was said when it was paused.")
    paused_at: datetime | None


class Worker(Answer):
    """A live worker."""

    id: UUID
    name: str
    queues: list[str]
    pool: str = Field(description="Workers of a pool share out their device time among the tenants together.")
    state: Literal["starting", "idle", "busy", "draining"]
    draining: bool = Field(description="Whether it is to take no more jobs; `state` follows a little later.")
    device: dict[str, Any] = Field(description="What it computes on: `kind`, `name`, `memory_bytes`.")
    loaded_models: list[str] = Field(description="Those that you can see.")
    version: str
    started_at: datetime
    last_seen_at: datetime
    last_looked_at: datetime | None = Field(description="When it last asked for work.")


class Usage(Answer):
    """What a tenant used, on one day and in one queue."""

    tenant: str
    day: date = Field(description="In UTC.")
    queue: str
    jobs: int = Field(description="Jobs that ended.")
    cached: int = Field(description="Those of them that were answered from an equal one.")
    images: int
    gpu_seconds: float = Field(description="Device-seconds of all attempts that were over on that day, lost ones too.")


class UsagePage(Page[Usage]):
    """Usage."""


class QueuePage(Page[Queue]):
    """Queues."""


class WorkerPage(Page[Worker]):
    """Workers."""


# --- Administration ---


class Tenant(Answer):
    """Who owns jobs, datasets and models."""

    id: UUID
    name: str
    weight: float = Field(description="Share of the device time beside other tenants that wait, too.")
    max_queued: int | None = Field(description="Most jobs that may wait; null: no limit.")
    max_running: int | None = Field(description="Most jobs that may run at once; null: no limit.")
    created_at: datetime


class Key(Answer):
    """An API key, without the key itself."""

    id: UUID
    tenant: str
    name: str
    prefix: str = Field(description="The key's first characters, to recognise it by.")
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class IssuedKey(Key):
    """A key that was just made."""

    key: str = Field(description="The key itself. It is shown this once and stored only as a hash.")


class TenantPage(Page[Tenant]):
    """Tenants."""


class KeyPage(Page[Key]):
    """Keys."""


# --- Service ---


class Health(Answer):
    status: Literal["ok"] = "ok"


class Check(Answer):
    """Whether one service can be reached."""

    ok: bool
    detail: str | None = Field(description="What is wrong, when something is.")


class Checks(Answer):
    postgres: Check
    object_store: Check
    broker: Check


class Readiness(Answer):
    """Ready to take jobs; degraded when something slows or limits it."""

    status: Literal["ok", "degraded"]
    checks: Checks


class ProblemField(Answer):
    loc: list[str | int] = Field(description="Path of keys and indices into the request.")
    msg: str = Field(description="What is wrong and what to do about it.")


class ProblemError(Answer):
    """The same error in the shape that clients of generation APIs read."""

    message: str
    type: str
    code: str
    param: str | None


class Problem(Answer):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="Where the code is explained.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
    code: str = Field(description="Stable; what a program should look at.")
    errors: list[ProblemField] = Field(description="The wrong fields, for invalid requests.")
    error: ProblemError
