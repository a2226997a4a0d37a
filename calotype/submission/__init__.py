"""From a valid request to a complete job: references pinned, defaults filled in, limits checked, seed drawn.

What a worker later sees in ``job.spec`` leaves nothing open, so that the same spec makes the same images again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype.jobs import Family, Kind
from calotype.queue import NewJob
from calotype.references import Held, References
from calotype.specs import Benchmark, DiffusionGenerate, DiffusionTrain, GanGenerate, GanTrain, JobRequest
from calotype.submission import benchmark, diffusion, gan, gan_train

#: What a job has beside what all jobs have, by its request.
_PARTICULAR: Mapping[type[Any], Callable[[References, Any], dict[str, Any]]] = {
    DiffusionGenerate: diffusion.generate,
    DiffusionTrain: diffusion.train,
    GanGenerate: gan.generate,
    GanTrain: gan_train.train,
    Benchmark: benchmark.benchmark,
}


def prepare(conn: sa.Connection, tenant_id: UUID, request: JobRequest) -> NewJob:
    """Completes a request for :func:`calotype.queue.submit`, by what the database says now.

    Raises:
        Invalid, NotFound: as :func:`complete`.
    """
    return complete(Held(conn, tenant_id), tenant_id, request)


def complete(references: References, tenant_id: UUID, request: JobRequest) -> NewJob:
    """Completes a request: what it names pinned, defaults filled in, a seed drawn. Writes nothing.

    Raises:
        Invalid: the model cannot do what is asked, or is of another family; names the field and the nearest value.
        NotFound: the tenant has no such model, dataset or image.
    """
    particular = _PARTICULAR[type(request)](references, request)
    return NewJob(
        tenant_id=tenant_id,
        kind=Kind(request.kind),
        family=Family(request.family),
        priority=request.priority,
        max_attempts=request.max_attempts,
        deadline_seconds=request.deadline_seconds,
        timeout_seconds=request.timeout_seconds,
        metadata=request.metadata,
        webhook=_webhook(request),
        retain_seconds=request.retain_seconds,
        **particular,
    )


def _webhook(request: JobRequest) -> dict[str, str] | None:
    if request.webhook is None:
        return None
    secret = request.webhook.secret
    return {"url": request.webhook.url, **({"secret": secret.get_secret_value()} if secret is not None else {})}
