"""Models on the way to a handler: checked on arrival, kept in memory within a budget."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from calotype.artifacts import ObjectStore
from calotype.datasets import Dataset
from calotype.errors import DependencyDown, JobFailed, NotFound
from calotype.jobs import Family
from calotype.registry import ModelFile, ModelVersion
from calotype.settings import Settings
from worker.cache import ModelCache


class Shelf:
    """Objects by key, in place of a store."""

    def __init__(self, outages: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self.fetches = 0
        self._outages = outages

    def fetch_file(self, key: str, path: Path) -> None:
        self.fetches += 1
        if self.fetches <= self._outages:
            raise DependencyDown("The store is away.")
        if key not in self.objects:
            raise NotFound(key)
        path.write_bytes(self.objects[key])


def version(
    shelf: Shelf, *, paths: tuple[str, ...] = ("unet/w.safetensors",), sha256: str | None = None
) -> ModelVersion:
    files = []
    for path in paths:
        shelf.objects[f"key/{path}"] = b"weights"
        digest = sha256 or hashlib.sha256(b"weights").hexdigest()
        files.append(ModelFile(path=path, object_key=f"key/{path}", bytes=7, sha256=digest))
    return ModelVersion(
        id=uuid4(),
        name="m",
        version=1,
        tenant_id=None,
        family=Family.DIFFUSION,
        architecture="sd3",
        base=None,
        digest="d" * 64,
        files=tuple(files),
        source={"type": "starter"},
        licence=None,
        parameters={},
        job_id=None,
        created_at=datetime.now(UTC),
    )


def cache(shelf: Shelf, tmp_path: Path, memory_bytes: int = 100) -> ModelCache:
    settings = Settings(cache_dir=tmp_path, cache_bytes=1000, memory_bytes=memory_bytes)
    return ModelCache(settings, cast(ObjectStore, shelf))


def test_a_version_is_laid_out_as_its_files_say_and_fetched_once(tmp_path: Path) -> None:
    shelf = Shelf()
    wanted = version(shelf, paths=("model_index.json", "unet/w.safetensors"))
    folder = cache(shelf, tmp_path).directory(wanted)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model_index.json",
        "unet/w.safetensors",
    }
    assert cache(shelf, tmp_path).directory(wanted) == folder
    assert shelf.fetches == 2


def test_a_file_with_another_digest_is_refused_and_not_kept(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(JobFailed) as failed:
        cache(shelf, tmp_path).directory(version(shelf, sha256="0" * 64))
    assert failed.value.code == "model_unavailable"
    assert not any((tmp_path / "entries").iterdir())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    shelf = Shelf()
    wanted = version(shelf)
    shelf.objects.clear()
    with pytest.raises(JobFailed, match=r"key/unet/w\.safetensors"):
        cache(shelf, tmp_path).directory(wanted)


def test_a_path_that_climbs_out_of_the_model_is_refused(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(JobFailed, match="leaves its folder"):
        cache(shelf, tmp_path).directory(version(shelf, paths=("../../outside",)))
    assert not list(tmp_path.rglob("outside"))


def test_a_version_without_files_is_refused(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(JobFailed, match="no files"):
        cache(shelf, tmp_path).directory(version(shelf, paths=()))


def test_an_outage_of_the_store_is_waited_out(tmp_path: Path) -> None:
    shelf = Shelf(outages=1)
    assert cache(shelf, tmp_path).directory(version(shelf)).is_dir()
    assert shelf.fetches == 2


def test_a_dataset_is_fetched_once(tmp_path: Path) -> None:
    shelf = Shelf()
    shelf.objects["data"] = b"zip"
    dataset = Dataset(
        id="ds_" + "0" * 32,
        tenant_id=None,
        name="logos",
        digest=hashlib.sha256(b"zip").hexdigest(),
        object_key="data",
        bytes=3,
        images=1,
        captions=False,
        labels=(),
        created_at=datetime.now(UTC),
    )
    models = cache(shelf, tmp_path)
    assert models.dataset_file(dataset).read_bytes() == b"zip"
    assert models.dataset_file(dataset).read_bytes() == b"zip"
    assert shelf.fetches == 1


def test_loaded_models_are_reused_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    models, loads = cache(Shelf(), tmp_path, memory_bytes=25), []

    def load(key: str) -> str:
        def loader() -> tuple[str, int]:
            loads.append(key)
            return key.upper(), 10

        return models.load(key, loader)

    assert [load("a"), load("b"), load("a"), load("c")] == ["A", "B", "A", "C"]
    assert models.loaded() == ["a", "c"]
    assert loads == ["a", "b", "c"]


def test_a_model_larger_than_the_budget_is_kept_alone(tmp_path: Path) -> None:
    models = cache(Shelf(), tmp_path, memory_bytes=25)
    models.load("small", lambda: ("s", 10))
    assert models.load("huge", lambda: ("h", 1000)) == "h"
    assert models.loaded() == ["huge"]
    models.clear()
    assert models.loaded() == []
