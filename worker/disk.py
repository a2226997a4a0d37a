"""A size-bounded folder cache that all workers of a node share.

Layout below the root::

    entries/<key>/files/…        what was fetched
    entries/<key>/manifest.json  {"files": {path: sha256}}
    incoming/<key>-<random>/     a fetch under way; renamed into place when complete
    locks/<key>.use              shared while in use (its mtime: last use), exclusive to evict
    locks/<key>.fill             exclusive while being fetched
    reserved/<key>               bytes promised to a fetch under way
    locks/room                   exclusive while room is made

A crash leaves at most an incoming folder and a reservation; both are recognised by their free fill lock and removed.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from calotype.errors import JobFailed, SettingsError
from worker.digests import sha256_of

log = logging.getLogger(__name__)

#: Fetches everything into an empty folder; returns path → sha256 of what it fetched, already checked.
Fill = Callable[[Path], Mapping[str, str]]

#: How often a worker that waits for another's fetch looks again, seconds.
LOCK_POLL_SECONDS = 0.1
DISK_FULL_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT})


def disk_full(detail: str) -> JobFailed:
    """The failure of a job that found no room; another node, or a later time, may have some."""
    return JobFailed("disk_full", "The worker's disk is full", detail, retryable=True)


class DiskCache:
    """Folders by key, fetched once a node, least recently used out first.

    An entry handed out by `folder` stays until `release`; other processes on the node respect that too.
    """

    def __init__(self, root: Path, capacity: int) -> None:
        #: Bytes that all entries may take together.
        self.capacity = capacity
        self._root = root
        self._held = ExitStack()
        self._held_keys: set[str] = set()
        #: Key → (path, size, mtime) of all files when this process last compared their digests.
        self._verified: dict[str, frozenset[tuple[str, int, int]]] = {}
        try:
            for name in ("entries", "incoming", "locks", "reserved"):
                (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise SettingsError(f"CALOTYPE_CACHE_DIR: cannot use {root}: {exc.strerror}.") from exc
        for key in {left.name.rpartition("-")[0] for left in (root / "incoming").iterdir()}:
            with self._try_lock(f"{key}.fill") as free:
                if free:
                    self._sweep(key)

    def folder(self, key: str, size: int, fill: Fill, pulse: Callable[[], None]) -> Path:
        """The files of `key`, fetched by `fill(empty_folder)` unless they are there already and sound.

        `size` is what the files will take, 0 if unknown. `pulse` is called while waiting and may raise to give up.
        Raises JobFailed `disk_full`; then, and whenever `fill` raises, nothing half-written stays.
        """
        if key not in self._held_keys:
            self._held.enter_context(self._locked(f"{key}.use", fcntl.LOCK_SH, pulse))
            self._held_keys.add(key)
        os.utime(self._lock_path(f"{key}.use"))
        if not self._sound(key):
            with self._locked(f"{key}.fill", fcntl.LOCK_EX, pulse):
                # Another worker may have fetched it while this one waited.
                if not self._sound(key):
                    self._fetch(key, size, fill, pulse)
        return self._files(key)

    def release(self) -> None:
        """Everything handed out so far may be evicted again."""
        self._held.close()
        self._held_keys.clear()

    def size(self) -> int:
        """Bytes that the entries take together."""
        return sum(self._entry_bytes(entry.name) for entry in (self._root / "entries").iterdir())

    def _fetch(self, key: str, size: int, fill: Fill, pulse: Callable[[], None]) -> None:
        self._remove(key)
        self._sweep(key)
        try:
            self._reserve(key, size, pulse)
            try:
                self._fetch_into_place(key, fill)
            except OSError as exc:
                if exc.errno not in DISK_FULL_ERRORS:
                    raise
                # The disk is fuller than our own bookkeeping knows: give back all we can, then try once more.
                log.warning("disk full, emptying the cache", extra={"key": key})
                self._evict(lambda: False)
                self._fetch_into_place(key, fill)
        except OSError as exc:
            if exc.errno not in DISK_FULL_ERRORS:
                raise
            raise disk_full(
                f"No space left in the model cache at {self._root}, even after emptying it. Free some, or move "
                "CALOTYPE_CACHE_DIR to a larger disk."
            ) from exc
        finally:
            self._reservation(key).unlink(missing_ok=True)
        if size == 0:
            with self._locked("room", fcntl.LOCK_EX, pulse):
                self._evict(lambda: self.size() <= self.capacity)

    def _fetch_into_place(self, key: str, fill: Fill) -> None:
        incoming = self._root / "incoming" / f"{key}-{secrets.token_hex(4)}"
        files = incoming / "files"
        try:
            files.mkdir(parents=True)
            manifest = dict(fill(files))
            (incoming / "manifest.json").write_text(json.dumps({"files": manifest}))
            incoming.rename(self._entry(key))
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self._verified[key] = _stamps(self._files(key))
        log.info("fetched into the cache", extra={"key": key, "bytes": self._entry_bytes(key)})

    def _reserve(self, key: str, size: int, pulse: Callable[[], None]) -> None:
        """Make room for `size` bytes and promise them to `key`."""
        if size > self.capacity:
            raise disk_full(
                f"It needs {size:,} bytes and the cache may hold {self.capacity:,}; raise CALOTYPE_CACHE_BYTES."
            )
        with self._locked("room", fcntl.LOCK_EX, pulse):
            if not self._evict(lambda: self.size() + self._reserved_bytes() + size <= self.capacity):
                raise disk_full(
                    f"It needs {size:,} bytes; the cache of {self.capacity:,} is full of what other jobs are using. "
                    "Raise CALOTYPE_CACHE_BYTES."
                )
            self._reservation(key).write_text(str(size))

    def _evict(self, enough: Callable[[], bool]) -> bool:
        """Remove unused entries, least recently used first, until `enough()`. Returns whether it is."""
        names = sorted((entry.name for entry in (self._root / "entries").iterdir()), key=self._last_use)
        for name in names:
            if enough():
                return True
            with self._try_lock(f"{name}.use") as free:
                if free:
                    self._remove(name)
                    log.info("evicted from the cache", extra={"key": name})
        return enough()

    def _sound(self, key: str) -> bool:
        """Whether the entry is there and every file is what was fetched; digests are compared once a process."""
        try:
            manifest = json.loads((self._entry(key) / "manifest.json").read_text())
            stamps = _stamps(self._files(key))
            digests = {str(name): str(digest) for name, digest in manifest["files"].items()}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if self._verified.get(key) == stamps:
            return True
        found = {path.relative_to(self._files(key)).as_posix() for path in _regular_files(self._files(key))}
        if found == set(digests) and all(
            sha256_of(self._files(key) / name) == digest for name, digest in digests.items()
        ):
            self._verified[key] = stamps
            return True
        log.warning("damaged in the cache, fetching it again", extra={"key": key})
        return False

    def _remove(self, key: str) -> None:
        self._verified.pop(key, None)
        if self._entry(key).exists():
            # Renamed first, so that nobody finds an entry with half of its files.
            doomed = self._root / "incoming" / f"{key}-{secrets.token_hex(4)}"
            self._entry(key).rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _sweep(self, key: str) -> None:
        """Remove what a crashed fetch or removal of `key` left; its fill lock is ours, so no fetch is under way."""
        for left in (self._root / "incoming").glob(f"{key}-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._reservation(key).unlink(missing_ok=True)

    def _reserved_bytes(self) -> int:
        total = 0
        for promise in (self._root / "reserved").iterdir():
            with self._try_lock(f"{promise.name}.fill") as free:
                if free:
                    # Its fetch is over, or crashed.
                    promise.unlink(missing_ok=True)
                    continue
            try:
                total += int(promise.read_text() or 0)
            except FileNotFoundError:
                continue
        return total

    def _entry_bytes(self, key: str) -> int:
        try:
            return sum(path.stat().st_size for path in _regular_files(self._files(key)))
        except FileNotFoundError:
            # Another worker is removing it.
            return 0

    def _last_use(self, key: str) -> float:
        try:
            return self._lock_path(f"{key}.use").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _entry(self, key: str) -> Path:
        return self._root / "entries" / key

    def _files(self, key: str) -> Path:
        return self._entry(key) / "files"

    def _reservation(self, key: str) -> Path:
        return self._root / "reserved" / key

    def _lock_path(self, name: str) -> Path:
        return self._root / "locks" / name

    @contextmanager
    def _locked(self, name: str, mode: int, pulse: Callable[[], None]) -> Iterator[None]:
        with self._lock_path(name).open("a") as file:
            while True:
                try:
                    fcntl.flock(file, mode | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pulse()
                    time.sleep(LOCK_POLL_SECONDS)
            yield

    @contextmanager
    def _try_lock(self, name: str) -> Iterator[bool]:
        """Whether the lock was free; then it is held exclusively inside the block."""
        with self._lock_path(name).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def _regular_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stamps(files: Path) -> frozenset[tuple[str, int, int]]:
    if not files.is_dir():
        raise FileNotFoundError(files)
    found = ((path, path.stat()) for path in _regular_files(files))
    return frozenset((path.relative_to(files).as_posix(), stat.st_size, stat.st_mtime_ns) for path, stat in found)
