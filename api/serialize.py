"""Domain values as the JSON of the API."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response
from pydantic import BaseModel

from api import schemas
from calotype.artifacts import ObjectStore
from calotype.events import Event
from calotype.jobs import Artifact, Job


def answer(body: BaseModel, status: int = 200, **headers: str) -> Response:
    """``body`` as a JSON answer; underscores in header names stand for hyphens."""
    response = Response(body.model_dump_json(), status=status, content_type="application/json")
    for name, value in headers.items():
        response.headers[name.replace("_", "-")] = value
    return response


def job(value: Job, artifacts: Sequence[Artifact], store: ObjectStore) -> schemas.Job:
    """The JSON of a job, with its artifacts under fresh presigned URLs."""
    here = job_path(value)
    return schemas.Job(
        id=value.id,
        kind=value.kind,
        family=value.family,
        model=value.model,
        state=value.state,
        priority=value.priority,
        attempt=value.attempt,
        max_attempts=value.max_attempts,
        created_at=value.created_at,
        started_at=value.started_at,
        finished_at=value.finished_at,
        expires_at=value.expires_at,
        progress=schemas.Progress(**value.progress.as_dict()) if value.progress else None,
        spec=dict(value.spec),
        result=dict(value.result) if value.result is not None else None,
        artifacts=[artifact(one, store) for one in artifacts],
        artifacts_expired_at=value.artifacts_expired_at,
        error=schemas.JobError(**value.error.as_dict()) if value.error else None,
        metadata=dict(value.metadata),
        retried_from=value.retried_from,
        urls=schemas.JobUrls(
            self=here,
            events=f"{here}/events",
            cancel=f"{here}/cancel",
            retry=f"{here}/retry",
            explain=f"{here}/explain",
        ),
    )


def event(value: Event) -> schemas.Event:
    return schemas.Event(seq=value.seq, type=value.type, created_at=value.created_at, data=dict(value.data))


def job_path(value: Job) -> str:
    return f"/v1/jobs/{value.id}"


def artifact(value: Artifact, store: ObjectStore) -> schemas.Artifact:
    url, expires_at = store.presign_get(value.object_key, content_type=value.content_type, filename=value.name)
    return schemas.Artifact(
        name=value.name,
        content_type=value.content_type,
        bytes=value.bytes,
        sha256=value.sha256,
        width=value.width,
        height=value.height,
        seed=value.seed,
        url=url,
        url_expires_at=expires_at,
    )
