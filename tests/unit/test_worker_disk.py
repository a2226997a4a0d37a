"""The node's disk cache: fetched once, checked, bounded, and never half-written."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from calotype.errors import JobFailed, SettingsError
from worker.digests import sha256_of
from worker.disk import DiskCache


def quiet() -> None:
    """A pulse that nobody takes."""


class Source:
    """Where a cache under test fetches from; counts how often."""

    def __init__(self, content: bytes = b"0123456789", error: OSError | None = None, fails: int = 0) -> None:
        self.fetches = 0
        self._content = content
        self._error = error
        self._fails = fails

    def __call__(self, into: Path) -> dict[str, str]:
        self.fetches += 1
        (into / "unet").mkdir()
        path = into / "unet" / "weights.safetensors"
        path.write_bytes(self._content)
        if self._error is not None and self.fetches <= self._fails:
            raise self._error
        return {"unet/weights.safetensors": sha256_of(path)}


def contents(root: Path) -> set[str]:
    """Every file below the cache except locks."""
    return {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.parent.name != "locks"}


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def age(root: Path, key: str, seconds: float) -> None:
    """Makes an entry look used that long before now."""
    lock = root / "locks" / f"{key}.use"
    moment = lock.stat().st_mtime - seconds
    os.utime(lock, (moment, moment))


def test_an_entry_is_fetched_once_and_found_again_by_another_process(tmp_path: Path) -> None:
    source = Source()
    folder = DiskCache(tmp_path, 100).folder("a", 10, source, quiet)
    assert (folder / "unet" / "weights.safetensors").read_bytes() == b"0123456789"
    assert DiskCache(tmp_path, 100).folder("a", 10, source, quiet) == folder
    assert source.fetches == 1


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "manifest"])
def test_damage_is_noticed_and_repaired(tmp_path: Path, damage: str) -> None:
    source = Source()
    folder = DiskCache(tmp_path, 100).folder("a", 10, source, quiet)
    weights = folder / "unet" / "weights.safetensors"
    if damage == "changed":
        weights.write_bytes(b"9123456789")
    elif damage == "removed":
        weights.unlink()
    elif damage == "added":
        (folder / "stray.py").write_text("import os")
    else:
        (folder.parent / "manifest.json").write_text("{")
    repaired = DiskCache(tmp_path, 100).folder("a", 10, source, quiet)
    assert source.fetches == 2
    assert {p.name for p in repaired.rglob("*") if p.is_file()} == {"weights.safetensors"}
    assert (repaired / "unet" / "weights.safetensors").read_bytes() == b"0123456789"


def test_damage_in_a_running_process_is_noticed_too(tmp_path: Path) -> None:
    source, cache = Source(), DiskCache(tmp_path, 100)
    (cache.folder("a", 10, source, quiet) / "unet" / "weights.safetensors").write_bytes(b"changed!!!")
    cache.folder("a", 10, source, quiet)
    assert source.fetches == 2


def test_two_workers_that_want_the_same_fetch_it_once(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()
    source = Source()

    def slow(into: Path) -> dict[str, str]:
        began.set()
        assert go.wait(10)
        return source(into)

    first = threading.Thread(target=DiskCache(tmp_path, 100).folder, args=("a", 10, slow, quiet))
    first.start()
    assert began.wait(10)
    waited = threading.Event()
    other = Source()
    second = threading.Thread(target=DiskCache(tmp_path, 100).folder, args=("a", 10, other, waited.set))
    second.start()
    assert waited.wait(10)
    go.set()
    first.join(10)
    second.join(10)
    assert (source.fetches, other.fetches) == (1, 0)


def test_waiting_for_another_workers_fetch_can_be_given_up(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(into: Path) -> dict[str, str]:
        began.set()
        assert go.wait(10)
        return Source()(into)

    first = threading.Thread(target=DiskCache(tmp_path, 100).folder, args=("a", 10, slow, quiet))
    first.start()
    assert began.wait(10)

    def give_up() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        DiskCache(tmp_path, 100).folder("a", 10, Source(), give_up)
    go.set()
    first.join(10)


def test_the_least_recently_used_entry_makes_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 25)
    for key, seconds in (("old", 200.0), ("recent", 100.0)):
        cache.folder(key, 10, Source(), quiet)
        age(tmp_path, key, seconds)
    cache.release()
    cache.folder("new", 10, Source(), quiet)
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"recent", "new"}
    assert cache.size() == 20


def test_what_another_worker_uses_is_not_evicted(tmp_path: Path) -> None:
    busy = DiskCache(tmp_path, 25)
    folder = busy.folder("in-use", 10, Source(), quiet)
    cache = DiskCache(tmp_path, 25)
    with pytest.raises(JobFailed) as refused:
        cache.folder("large", 20, Source(b"0" * 20), quiet)
    assert refused.value.code == "disk_full"
    assert folder.exists()
    busy.release()
    cache.folder("large", 20, Source(b"0" * 20), quiet)
    assert not folder.exists()


def test_what_can_never_fit_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    source, cache = Source(), DiskCache(tmp_path, 5)
    with pytest.raises(JobFailed, match="CALOTYPE_CACHE_BYTES") as refused:
        cache.folder("a", 10, source, quiet)
    assert (refused.value.code, source.fetches) == ("disk_full", 0)


def test_a_full_disk_empties_the_cache_and_the_fetch_is_tried_once_more(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    cache.folder("old", 10, Source(), quiet)
    cache.release()
    source = Source(error=full_disk(), fails=1)
    cache.folder("new", 10, source, quiet)
    assert source.fetches == 2
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"new"}


def test_a_disk_that_stays_full_fails_the_job_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 100)
    with pytest.raises(JobFailed) as failed:
        cache.folder("a", 10, Source(error=full_disk(), fails=2), quiet)
    assert (failed.value.code, failed.value.retryable) == ("disk_full", True)
    assert contents(tmp_path) == set()


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), OSError(errno.EIO, "input/output error")])
def test_any_other_error_passes_and_leaves_nothing_half_written(tmp_path: Path, error: OSError) -> None:
    cache = DiskCache(tmp_path, 100)
    with pytest.raises(type(error)):
        cache.folder("a", 10, Source(error=error, fails=1), quiet)
    assert contents(tmp_path) == set()


def test_what_a_crashed_fetch_left_is_swept_and_its_promise_does_not_count(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 25)
    (tmp_path / "incoming" / "a-dead").mkdir()
    (tmp_path / "incoming" / "a-dead" / "part").write_bytes(b"half")
    for key in ("a", "b"):
        (tmp_path / "reserved" / key).write_text("20")
    cache.folder("a", 10, Source(), quiet)
    assert not any((tmp_path / "incoming").iterdir())
    assert not any((tmp_path / "reserved").iterdir())


def test_room_promised_to_a_fetch_under_way_is_not_given_away(tmp_path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(into: Path) -> dict[str, str]:
        began.set()
        assert go.wait(10)
        return Source()(into)

    first = threading.Thread(target=DiskCache(tmp_path, 15).folder, args=("a", 10, slow, quiet))
    first.start()
    assert began.wait(10)
    with pytest.raises(JobFailed):
        DiskCache(tmp_path, 15).folder("b", 10, Source(), quiet)
    go.set()
    first.join(10)


def test_an_entry_of_unknown_size_is_bounded_after_the_fact(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, 15)
    cache.folder("old", 10, Source(), quiet)
    cache.release()
    age(tmp_path, "old", 100.0)
    cache.folder("hub", 0, Source(), quiet)
    assert {path.name for path in (tmp_path / "entries").iterdir()} == {"hub"}


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="CALOTYPE_CACHE_DIR"):
        DiskCache(tmp_path / "file" / "cache", 100)


def test_what_crashes_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    DiskCache(tmp_path, 100)
    (tmp_path / "incoming" / "gone-0badc0de").mkdir()
    DiskCache(tmp_path, 100)
    assert not any((tmp_path / "incoming").iterdir())
