"""Checkpoints: stored under the job's prefix, made valid by one fenced write, found again by whoever resumes the job.

The row says which checkpoint holds: `{"step", "epoch", "directory", "objects": [{"name", "key", "bytes", "sha256"}]}`.
Objects of an epoch that lost its lease are never referenced and are collected later.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from calotype import queue
from calotype.artifacts import ObjectStore, job_prefix
from calotype.database import transaction
from calotype.errors import DependencyDown, NotFound
from calotype.errors import LeaseLost as StaleEpoch
from calotype.jobs import Job
from worker.digests import sha256_of
from worker.signals import LeaseLost

log = logging.getLogger(__name__)


def save(engine: Engine, store: ObjectStore, job: Job, path: Path, step: int, pulse: Callable[[], None]) -> Job:
    """Upload a file or folder, then make it the job's checkpoint. Returns the job with the checkpoint that now holds.

    `pulse` is called after each file: together they may be tens of gigabytes. Raises LeaseLost when the epoch is stale.
    An outage of Postgres or of the store is logged and leaves the previous checkpoint in force.
    """
    try:
        record = _upload(store, job, path, step, pulse)
        with transaction(engine) as conn:
            queue.checkpoint(conn, job.id, job.epoch, record)
    except StaleEpoch as exc:
        raise LeaseLost from exc
    except DependencyDown as exc:
        log.warning("checkpoint not saved, the previous one holds", extra={"step": step, "reason": exc.detail})
        return job
    log.info("checkpoint saved", extra={"step": step, "objects": len(record["objects"])})
    _remove(store, job.checkpoint)
    return dataclasses.replace(job, checkpoint=record)


def load(store: ObjectStore, job: Job, into: Path, pulse: Callable[[], None]) -> tuple[Path, int] | None:
    """Fetch the job's checkpoint into a folder: the path that was saved, and its step. None when there is none.

    `pulse` is called after each file and may raise to give up. One that is gone or damaged counts as none: starting
    again is slower, and never wrong.
    """
    record = job.checkpoint
    if record is None:
        return None
    shutil.rmtree(into, ignore_errors=True)
    for item in record["objects"]:
        target = into / item["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.fetch_file(item["key"], target)
        except NotFound:
            log.warning("checkpoint is gone, starting again", extra={"step": record["step"], "key": item["key"]})
            return None
        if sha256_of(target) != item["sha256"]:
            log.warning("checkpoint is damaged, starting again", extra={"step": record["step"], "key": item["key"]})
            return None
        pulse()
    path = into if record["directory"] else into / record["objects"][0]["name"]
    return path, int(record["step"])


def _upload(store: ObjectStore, job: Job, path: Path, step: int, pulse: Callable[[], None]) -> dict[str, Any]:
    # A name of its own even for a step saved before: the checkpoint in force must not be overwritten piece by piece.
    prefix = f"{job_prefix(job.tenant_id, job.id, job.epoch)}checkpoints/{step}-{secrets.token_hex(4)}/"
    objects = []
    for file, name in _files(path):
        key = prefix + name
        store.put_file(key, file, "application/octet-stream")
        objects.append({"name": name, "key": key, "bytes": file.stat().st_size, "sha256": sha256_of(file)})
        pulse()
    return {"step": step, "epoch": job.epoch, "directory": path.is_dir(), "objects": objects}


def _files(path: Path) -> Iterator[tuple[Path, str]]:
    """The files to store, each with its name relative to what was saved."""
    if path.is_file():
        yield path, path.name
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file, file.relative_to(path).as_posix()


def _remove(store: ObjectStore, record: Mapping[str, Any] | None) -> None:
    """Delete the checkpoint that was replaced; what an outage leaves behind the reconciler collects."""
    if record is not None:
        store.discard([item["key"] for item in record["objects"]])
