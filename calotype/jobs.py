"""Jobs as values: what they are, which states they have and what may move them. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self
from uuid import UUID

#: Whether an equal job's images may answer a request: of the same seed, of none, of whatever seed.
CacheMode = Literal["use", "bypass", "any_seed"]


class Kind(StrEnum):
    """What is asked for."""

    TRAIN = "train"
    GENERATE = "generate"
    BENCHMARK = "benchmark"


class Family(StrEnum):
    """The model family that does it."""

    DIFFUSION = "diffusion"
    GAN = "gan"
    HYBRID = "hybrid"
    COMPLIANCE = "compliance"


class State(StrEnum):
    """Where a job stands. Each line says who moves it on."""

    #: Waits for a worker's claim; a user may cancel it, the reconciler expires it after its deadline.
    QUEUED = "queued"
    #: A worker holds its lease and ends it; the reconciler reaps it when the lease lapses.
    RUNNING = "running"
    #: A user canceled it while it ran; its worker acknowledges, or the reconciler does when the lease lapses.
    CANCELING = "canceling"
    #: Ended with a published result.
    SUCCEEDED = "succeeded"
    #: Ended with an error.
    FAILED = "failed"
    #: Ended at a user's wish.
    CANCELED = "canceled"
    #: Ended because its deadline passed before it started.
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


#: Nothing ever leaves these states.
TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELED, State.EXPIRED})
#: A worker holds the job under a lease.
HELD = frozenset({State.RUNNING, State.CANCELING})


@dataclass(frozen=True, kw_only=True)
class Transition:
    """One arrow of the state machine; ``name`` is the function of :mod:`calotype.queue` that walks it."""

    name: str
    source: State | None
    target: State
    #: Who does it.
    by: str
    #: When.
    when: str


TRANSITIONS: tuple[Transition, ...] = (
    Transition(name="submit", source=None, target=State.QUEUED, by="API", when="a valid request arrives"),
    Transition(
        name="submit",
        source=None,
        target=State.SUCCEEDED,
        by="API",
        when="an equal job of the tenant has the result already",
    ),
    Transition(name="claim", source=State.QUEUED, target=State.RUNNING, by="worker", when="it is its turn"),
    Transition(
        name="finish",
        source=State.RUNNING,
        target=State.SUCCEEDED,
        by="worker",
        when="the result is uploaded",
    ),
    Transition(
        name="finish",
        source=State.QUEUED,
        target=State.SUCCEEDED,
        by="worker",
        when="the equal job that it waits for is finished",
    ),
    Transition(
        name="finish",
        source=State.CANCELING,
        target=State.CANCELED,
        by="worker",
        when="the result goes to equal jobs that wait for it",
    ),
    Transition(
        name="fail",
        source=State.RUNNING,
        target=State.FAILED,
        by="worker",
        when="the failure is final or no attempt remains",
    ),
    Transition(
        name="fail",
        source=State.RUNNING,
        target=State.QUEUED,
        by="worker",
        when="the failure is retryable and attempts remain; waits out a backoff",
    ),
    Transition(
        name="fail",
        source=State.CANCELING,
        target=State.CANCELED,
        by="worker",
        when="it failed while being canceled",
    ),
    Transition(
        name="release",
        source=State.RUNNING,
        target=State.QUEUED,
        by="worker",
        when="it shuts down; costs no attempt",
    ),
    Transition(
        name="release",
        source=State.CANCELING,
        target=State.CANCELED,
        by="worker",
        when="it shuts down while the job is being canceled",
    ),
    Transition(name="cancel", source=State.QUEUED, target=State.CANCELED, by="user", when="it has not started"),
    Transition(
        name="cancel",
        source=State.RUNNING,
        target=State.CANCELING,
        by="user",
        when="it runs; the worker is told",
    ),
    Transition(
        name="acknowledge_cancel",
        source=State.CANCELING,
        target=State.CANCELED,
        by="worker",
        when="it has stopped working on it",
    ),
    Transition(
        name="reap",
        source=State.RUNNING,
        target=State.QUEUED,
        by="reconciler",
        when="the lease lapsed and attempts remain",
    ),
    Transition(
        name="reap",
        source=State.RUNNING,
        target=State.FAILED,
        by="reconciler",
        when="the lease lapsed and no attempt remains",
    ),
    Transition(
        name="reap",
        source=State.CANCELING,
        target=State.CANCELED,
        by="reconciler",
        when="the lease lapsed while being canceled",
    ),
    Transition(
        name="expire",
        source=State.QUEUED,
        target=State.EXPIRED,
        by="reconciler",
        when="the deadline passed before it started",
    ),
)


def queue_name(family: Family, kind: Kind) -> str:
    """The queue of a family and a kind, e.g. ``diffusion.generate``."""
    return f"{family}.{kind}"


#: Every queue the language of the product has a word for.
QUEUES: tuple[str, ...] = tuple(queue_name(family, kind) for family in Family for kind in Kind)
#: The queues that code of this release serves; a job for any other is refused.
SERVED_QUEUES: tuple[str, ...] = (
    "diffusion.generate",
    "diffusion.train",
    "diffusion.benchmark",
    "gan.generate",
    "gan.train",
    "gan.benchmark",
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running job is."""

    #: Between 0 and 1.
    fraction: float
    step: int
    total: int
    #: A word for what is being done, e.g. ``training``.
    stage: str
    #: Expected seconds to the end, where known.
    eta_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "fraction": self.fraction,
            "step": self.step,
            "total": self.total,
            "stage": self.stage,
            "eta_seconds": self.eta_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed."""

    #: Stable and machine-readable, e.g. ``out_of_memory``.
    code: str
    title: str
    detail: str
    #: Whether submitting the same job again may go better.
    retryable: bool

    def as_dict(self) -> dict[str, Any]:
        return {"code": self.code, "title": self.title, "detail": self.detail, "retryable": self.retryable}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file a job published."""

    #: Unique within the job, e.g. ``image-0.png``.
    name: str
    object_key: str
    content_type: str
    bytes: int
    #: Hexadecimal.
    sha256: str
    #: Order within the job.
    position: int = 0
    #: Pixels, for images.
    width: int | None = None
    height: int | None = None
    #: The seed that makes this image again.
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of ``jobs``."""

    #: UUIDv7: sorts by time of submission.
    id: UUID
    tenant_id: UUID
    kind: Kind
    family: Family
    #: ``<family>.<kind>``.
    queue: str
    #: The pinned model, ``name@version``; None where the kind has none.
    model: str | None
    #: What was asked: validated, complete, immutable.
    spec: Mapping[str, Any]
    state: State
    #: 0 to 9, higher first.
    priority: int
    #: How many claims were charged; 0 before the first.
    attempt: int
    max_attempts: int
    #: Grows with every claim; fences every write of a worker.
    epoch: int
    worker_id: UUID | None
    created_at: datetime
    #: Not claimed before.
    available_at: datetime
    #: Of the latest claim.
    started_at: datetime | None
    finished_at: datetime | None
    #: Not started after; the job expires then.
    expires_at: datetime | None
    lease_expires_at: datetime | None
    #: Longest run of one attempt, seconds.
    timeout_seconds: float | None
    progress: Progress | None
    #: What a resuming worker needs; None once the job has ended:
    #: ``{"step", "epoch", "directory", "objects": [{"name", "key", "bytes", "sha256"}]}``.
    checkpoint: Mapping[str, Any] | None
    result: Mapping[str, Any] | None
    error: JobError | None
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: The job this one repeats.
    retried_from: UUID | None = None
    #: Grows with every visible change of the row; long polls compare it.
    revision: int = 0
    #: The sequence number of its latest event.
    event_seq: int = 0
    #: What a worker keeps loaded for it: equal for equal files.
    model_key: str | None = None
    #: Equal keys may share one call of the model; None: runs alone.
    batch_key: str | None = None
    #: Parts of a batch that it fills (images).
    units: int = 1
    #: How many such parts one call takes.
    batch_limit: int = 1
    #: How much there is to do, in a measure that is the same for all jobs of a queue and model.
    work: float = 1.0
    #: Of the latest claim: the workers whose device time is shared out together; None before the first.
    pool: str | None = None
    #: Of the latest claim: which part of the device's time is this job's, above 0 to 1.
    batch_share: float = 1.0
    #: Of the latest claim: virtual time, device-seconds over the tenant's weight, taken in advance.
    charged: float = 0.0
    #: Measured device-seconds of all attempts that are over.
    gpu_seconds: float = 0.0
    #: ``{"url", "secret"}``
    webhook: Mapping[str, str] | None = field(default=None, repr=False)
    #: Digest of the complete spec, and of the spec without its seed; None: never answered from another job.
    cache_key: str | None = None
    any_seed_key: str | None = None
    #: The equal job whose result it waits for.
    leader_id: UUID | None = None
    #: How long its artifacts are kept after its end, seconds; None: as long as the operator keeps jobs.
    retain_seconds: float | None = None
    artifacts_expired_at: datetime | None = None
    #: Not of the row: equal jobs that the same transition ended, told to whoever made it.
    answered: tuple[UUID, ...] = ()

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        """Builds the value from a row of ``jobs``; columns that are not part of the value are ignored."""
        values = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        values["kind"] = Kind(row["kind"])
        values["family"] = Family(row["family"])
        values["state"] = State(row["state"])
        values["progress"] = Progress(**row["progress"]) if row["progress"] else None
        values["error"] = JobError(**row["error"]) if row["error"] else None
        return cls(**values)
