"""Uploading what a job made, before one transaction makes it visible."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from calotype.artifacts import ObjectStore, job_prefix
from calotype.jobs import Artifact, Family, Job
from calotype.queue import Outcome
from calotype.registry import ModelFile, NewVersion
from worker.context import HandlerResult, NewModel, Output
from worker.digests import sha256_of
from worker.patience import patiently
from worker.signals import Signals

#: How long an upload waits for an object store that is down before the job is put back.
PATIENCE_SECONDS = 600.0


def upload(store: ObjectStore, job: Job, signals: Signals, result: HandlerResult) -> Outcome:
    """Put every file under the prefix of this job and epoch; returns what the finishing transaction needs.

    Raises Interrupted when the lease is lost or the job canceled meanwhile (not for a shutdown: the work is done, only
    its delivery is left), DependencyDown when the store stays away.
    """
    artifacts = tuple(
        _artifact(store, job, signals, output, position) for position, output in enumerate(result.outputs)
    )
    model = _model(store, job, signals, result.model) if result.model is not None else None
    return Outcome(result=result.result, artifacts=artifacts, model=model)


def _artifact(store: ObjectStore, job: Job, signals: Signals, output: Output, position: int) -> Artifact:
    key = job_prefix(job.tenant_id, job.id, job.epoch) + output.name
    _put(store, signals, key, output.path, output.content_type)
    return Artifact(
        name=output.name,
        object_key=key,
        content_type=output.content_type,
        bytes=output.path.stat().st_size,
        sha256=sha256_of(output.path),
        position=position,
        width=output.width,
        height=output.height,
        seed=output.seed,
    )


def _model(store: ObjectStore, job: Job, signals: Signals, model: NewModel) -> NewVersion:
    prefix = f"{job_prefix(job.tenant_id, job.id, job.epoch)}model/"
    files = []
    for path in sorted(file for file in model.directory.rglob("*") if file.is_file()):
        name = path.relative_to(model.directory).as_posix()
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        _put(store, signals, prefix + name, path, content_type)
        files.append(ModelFile(path=name, object_key=prefix + name, bytes=path.stat().st_size, sha256=sha256_of(path)))
    return NewVersion(
        name=model.name,
        tenant_id=job.tenant_id,
        family=Family(model.family),
        architecture=model.architecture,
        base=model.base,
        files=tuple(files),
        source=dict(model.source),
        licence=model.licence,
        parameters=dict(model.parameters),
        job_id=job.id,
    )


def _put(store: ObjectStore, signals: Signals, key: str, path: Path, content_type: str) -> None:
    def pulse() -> None:
        signals.alive()
        signals.raise_if_unwanted()

    pulse()
    patiently(
        lambda: store.put_file(key, path, content_type), what=f"upload {key}", pulse=pulse, seconds=PATIENCE_SECONDS
    )
