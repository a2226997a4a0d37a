"""The models and datasets that ship with Calotype, put into the registry for every tenant."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

import starter
from calotype import datasets, tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.datasets import DatasetLimits
from calotype.errors import NotFound
from calotype.jobs import Family
from calotype.registry import ModelFile, NewVersion, register_version
from calotype.settings import Settings

ARCHITECTURE = "sd3"
GAN_ARCHITECTURE = "r3gan"


def register(settings: Settings, engine: sa.Engine, store: ObjectStore) -> Iterator[str]:
    """Register what ships and is not registered yet; gives the names of what was new. The digest decides."""
    limits = DatasetLimits.of(settings)
    known = _known_datasets(engine)
    for name, path in (
        (starter.BRAND_DATASET, starter.brand_dataset()),
        (starter.HELDOUT_DATASET, starter.heldout_dataset()),
        (starter.TRAIN_DATASET, starter.train_dataset()),
    ):
        if path.exists():
            made = datasets.import_shared(engine, store, path, name, limits)
            if made.id not in known:
                yield f"dataset {name}"
    folder = starter.diffusion_dir()
    model = starter.DIFFUSION
    if folder.is_dir() and register_pipeline(engine, store, folder, model.name, model.parameters):
        yield f"model {model.name}"
    if starter.gan_dir().is_dir() and register_gan(engine, store, starter.gan_dir(), starter.GAN):
        yield f"model {starter.GAN.name}"


def register_pipeline(
    engine: sa.Engine, store: ObjectStore, folder: Path, name: str, parameters: Mapping[str, Any]
) -> bool:
    """Share a pipeline folder with every tenant, as the next version of ``name``; False when it is there already."""
    model = replace(starter.DIFFUSION, name=name, parameters=parameters)
    return _register(engine, store, folder, model, Family.DIFFUSION, ARCHITECTURE)


def register_gan(engine: sa.Engine, store: ObjectStore, folder: Path, model: starter.Metadata) -> bool:
    """Share a GAN's folder with every tenant, as the next version of its name; False when it is there already."""
    return _register(engine, store, folder, model, Family.GAN, GAN_ARCHITECTURE)


def _register(
    engine: sa.Engine, store: ObjectStore, folder: Path, model: starter.Metadata, family: Family, architecture: str
) -> bool:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    new = NewVersion(
        name=model.name,
        tenant_id=None,
        family=family,
        architecture=architecture,
        files=[_file(folder, path, model.name) for path in paths],
        source={
            "type": "starter",
            "description": model.description,
            "made_by": model.source,
            "notice": model.notice,
        },
        licence=model.licence,
        parameters=model.parameters,
    )
    for file in new.files:
        if not _is_stored(store, file):
            store.put_file(file.object_key, folder / file.path)
    models = tables.model_versions
    same = sa.select(models.c.id).where(
        models.c.tenant_id.is_(None), models.c.name == model.name, models.c.digest == new.digest
    )
    with transaction(engine) as conn:
        if conn.execute(same).first() is not None:
            return False
        register_version(conn, new)
        return True


def _file(folder: Path, path: Path, model: str) -> ModelFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    relative = path.relative_to(folder).as_posix()
    # Named by content: a newer version of the project adds files and never changes those of an older version.
    key = f"shared/models/{model}/{digest}/{path.name}"
    return ModelFile(path=relative, object_key=key, bytes=path.stat().st_size, sha256=digest)


def _is_stored(store: ObjectStore, file: ModelFile) -> bool:
    try:
        return store.stat(file.object_key).bytes == file.bytes
    except NotFound:
        return False


def _known_datasets(engine: sa.Engine) -> set[str]:
    shared = sa.select(tables.datasets.c.id).where(tables.datasets.c.tenant_id.is_(None))
    with transaction(engine) as conn:
        return set(conn.execute(shared).scalars())
