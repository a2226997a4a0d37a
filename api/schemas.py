"""The JSON that the API answers, as types: what `/openapi.json` shows is what is sent."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from calotype.jobs import Family, Kind, State

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
    cancel: str
    retry: str


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
    error: JobError | None
    metadata: dict[str, str]
    retried_from: UUID | None = Field(description="The job that this one repeats.")
    urls: JobUrls


class JobPage(Page[Job]):
    """Jobs."""


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


class Worker(Answer):
    """A live worker."""

    id: UUID
    name: str
    queues: list[str]
    state: Literal["starting", "idle", "busy", "draining"]
    device: dict[str, Any] = Field(description="What it computes on: `kind`, `name`, `memory_bytes`.")
    loaded_models: list[str] = Field(description="Those that you can see.")
    version: str
    started_at: datetime
    last_seen_at: datetime


class QueuePage(Page[Queue]):
    """Queues."""


class WorkerPage(Page[Worker]):
    """Workers."""


# --- Administration ---


class Tenant(Answer):
    """Who owns jobs, datasets and models."""

    id: UUID
    name: str
    max_queued: int | None = Field(description="Most jobs that may wait; null: no limit.")
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
