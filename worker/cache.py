"""Models and datasets on this node: on disk once a node, in memory as long as the budget allows."""

from __future__ import annotations

import gc
import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from calotype.artifacts import ObjectStore
from calotype.datasets import Dataset
from calotype.errors import JobFailed, NotFound
from calotype.registry import ModelVersion
from calotype.settings import Settings
from worker import hub
from worker.digests import sha256_of
from worker.disk import DiskCache
from worker.patience import patiently

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How long a fetch waits for an object store that is down before the job is put back.
PATIENCE_SECONDS = 300.0
#: Codes of what cannot be fetched.
MODEL, DATASET = "model_unavailable", "dataset_unavailable"


class ModelCache:
    """What handlers load models through. One job at a time uses it."""

    def __init__(self, settings: Settings, store: ObjectStore) -> None:
        #: Called while fetching; may raise to give up. The drain loop sets it for each job.
        self.pulse: Callable[[], None] = _nothing
        self._settings = settings
        self._store = store
        self._disk = DiskCache(settings.cache_dir, settings.cache_bytes)
        #: Key → (object, bytes), least recently used first.
        self._memory: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def directory(self, version: ModelVersion) -> Path:
        """A folder with the version's files, fetched once a node, every digest checked. Do not write into it.

        Raises JobFailed `disk_full` or `model_unavailable`; DependencyDown when the source stays unreachable.
        """
        source = version.source
        if version.files:
            files = {file.path: (file.object_key, file.sha256) for file in version.files}
            size = sum(file.bytes for file in version.files)
            key = _folder_name(f"model-{version.digest}")
            return self._disk.folder(key, size, lambda into: self._from_store(files, into, MODEL), self.pulse)
        if source.get("type") == "hub":
            repo, revision = str(source["repo"]), str(source["revision"])
            key = _folder_name(f"hub-{repo}-{revision}")
            return self._disk.folder(
                key, 0, lambda into: hub.fetch(self._settings, repo, revision, into, self.pulse), self.pulse
            )
        raise JobFailed(MODEL, "The model has no files", f"{version.ref} lists no files to fetch.", retryable=False)

    def dataset_file(self, dataset: Dataset) -> Path:
        """The dataset's archive on this node's disk. Raises JobFailed `disk_full` or `dataset_unavailable`."""
        files = {"archive.zip": (dataset.object_key, dataset.digest)}
        key = _folder_name(f"dataset-{dataset.digest}")
        folder = self._disk.folder(key, dataset.bytes, lambda into: self._from_store(files, into, DATASET), self.pulse)
        return folder / "archive.zip"

    def load(self, key: str, loader: Callable[[], tuple[T, int]]) -> T:
        """The object under `key`, made by `loader() -> (object, bytes)` unless it is loaded.

        `bytes` counts against CALOTYPE_MEMORY_BYTES. The least recently used others go when it does not fit beside
        them; the newest stays even when it alone exceeds the budget, since the job at hand needs it.
        """
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key][0]  # type: ignore[no-any-return]
        self.pulse()
        value, size = loader()
        self._memory[key] = (value, size)
        log.info("loaded", extra={"key": key, "bytes": size})
        while len(self._memory) > 1 and self._memory_bytes() > self._settings.memory_bytes:
            evicted, _ = self._memory.popitem(last=False)
            log.info("unloaded", extra={"key": evicted})
            _free_device_memory()
        self.pulse()
        return value

    def loaded(self) -> list[str]:
        """Keys of what is in memory, least recently used first; the API turns those of models into names."""
        return list(self._memory)

    def clear(self) -> None:
        """Unload everything, e.g. after running out of memory."""
        self._memory.clear()
        _free_device_memory()

    def release(self) -> None:
        """The job is over: its files on disk may be evicted."""
        self.pulse = _nothing
        self._disk.release()

    def _memory_bytes(self) -> int:
        return sum(size for _, size in self._memory.values())

    def _from_store(self, files: Mapping[str, tuple[str, str]], into: Path, code: str) -> dict[str, str]:
        """Fetch path → (object key, expected sha256) into a folder and check each; trouble fails with `code`."""
        for path, (key, expected) in files.items():
            target = into / path
            if not target.resolve().is_relative_to(into.resolve()):
                raise JobFailed(code, "A file is misplaced", f"The path {path} leaves its folder.", retryable=False)
            target.parent.mkdir(parents=True, exist_ok=True)
            self._fetch_one(key, target, expected, code)
            self.pulse()
        return {path: expected for path, (_, expected) in files.items()}

    def _fetch_one(self, key: str, target: Path, expected: str, code: str) -> None:
        def fetch() -> None:
            self._store.fetch_file(key, target)

        try:
            patiently(fetch, what=f"object {key}", pulse=self.pulse, seconds=PATIENCE_SECONDS)
        except NotFound as exc:
            detail = f"{key} is missing from the object store."
            raise JobFailed(code, "A file is gone", detail, retryable=False) from exc
        found = sha256_of(target)
        if found != expected:
            detail = f"{key} in the object store has the digest {found}, not {expected}. Upload or register it again."
            raise JobFailed(code, "A file is damaged", detail, retryable=True)


def _nothing() -> None:
    """No job is running: nothing to notice, nothing to give up."""


def _folder_name(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", key)


def _free_device_memory() -> None:
    """Give freed tensors back to the device, so that other processes and the next model can have the memory."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
