"""What goes into the queue and what comes out of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from calotype.idempotency import RequestKey
from calotype.jobs import Artifact, CacheMode, Family, Kind
from calotype.registry import NewVersion
from calotype.scheduling import DEFAULT_PRIORITY


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """What :func:`submit` writes. ``spec`` is complete: references pinned, defaults filled in, seed drawn."""

    tenant_id: UUID
    kind: Kind
    family: Family
    model: str | None
    spec: Mapping[str, Any]
    priority: int = DEFAULT_PRIORITY
    max_attempts: int = 3
    deadline_seconds: float | None = None
    timeout_seconds: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retried_from: UUID | None = None
    #: What a worker keeps loaded for it: equal for equal files.
    model_key: str | None = None
    #: Equal keys may share one call of the model; None: runs alone.
    batch_key: str | None = None
    #: Parts of a batch that it fills (images), and how many of them one call takes.
    units: int = 1
    batch_limit: int = 1
    #: How much there is to do, in a measure that is the same for all jobs of a queue and model.
    work: float = 1.0
    #: ``{"url", "secret"}``
    webhook: Mapping[str, str] | None = field(default=None, repr=False)
    #: Of the complete spec, and of the spec without its seed; None: never answered from another job.
    cache_key: str | None = None
    any_seed_key: str | None = None
    #: Which equal job may answer it; with ``bypass`` none, though with keys it may answer others.
    cache: CacheMode = "use"
    #: How long its artifacts are kept after its end; None: as long as the operator keeps jobs.
    retain_seconds: float | None = None
    #: Makes one job only.
    request_key: RequestKey | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished job publishes, all of it in one transaction."""

    result: Mapping[str, Any]
    artifacts: Sequence[Artifact] = ()
    #: The version a train job made.
    model: NewVersion | None = None
