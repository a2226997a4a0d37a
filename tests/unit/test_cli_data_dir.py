"""The data folder of a stack: privacy, locks, and what a dead stack leaves behind."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from calotype.local.data_dir import (
    ChildRecord,
    DataDir,
    RunningStack,
    child_record,
    translated_disk_errors,
)
from calotype.local.errors import StackError

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "data")
    made.prepare()
    return made


def running(data_dir: DataDir, **children: ChildRecord) -> RunningStack:
    return RunningStack(
        url="http://127.0.0.1:1", pid=1, ready=True, api_key_file=str(data_dir.api_key_file), children=children
    )


def test_secrets_are_made_once_and_only_their_owner_reads_them(data_dir: DataDir) -> None:
    made = data_dir.secrets()

    assert DataDir(data_dir.path).secrets() == made
    assert len({made.database_password, made.broker_password, made.s3_secret_key}) == 3
    assert stat.S_IMODE((data_dir.path / "secrets.json").stat().st_mode) == 0o600


def test_others_cannot_list_the_folder_or_read_the_logs(data_dir: DataDir) -> None:
    assert not data_dir.path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    assert stat.S_IMODE(data_dir.logs.stat().st_mode) == 0o700


def test_the_mode_of_a_folder_that_was_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o750)

    DataDir(tmp_path / "mine").prepare()

    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o750


def test_a_locked_folder_names_its_holder_and_the_remedy(data_dir: DataDir) -> None:
    with data_dir.locked(), pytest.raises(StackError) as caught, DataDir(data_dir.path).locked():
        pytest.fail("locked twice")

    assert f"pid {os.getpid()}" in caught.value.message
    assert "--data-dir" in caught.value.remedy


def test_a_lock_ends_with_its_holder(data_dir: DataDir) -> None:
    with data_dir.locked():
        pass

    with data_dir.locked():
        assert (data_dir.path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_stack_counts_as_running_only_while_it_holds_the_lock(data_dir: DataDir) -> None:
    with data_dir.locked():
        data_dir.record(running(data_dir))
        assert data_dir.running() == running(data_dir)

    assert data_dir.running() is None


def test_a_record_that_was_cut_short_counts_as_none(data_dir: DataDir) -> None:
    with data_dir.locked():
        (data_dir.path / "stack.json").write_text('{"url": "http')

        assert data_dir.running() is None


def test_processes_of_a_killed_stack_are_ended(data_dir: DataDir) -> None:
    left = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    data_dir.record(running(data_dir, worker=child_record(left.pid)))

    ended = data_dir.end_leftovers()

    assert ended == ["worker"]
    assert left.wait(10) != 0
    assert not (data_dir.path / "stack.json").exists()


def test_a_process_that_only_has_the_same_number_is_spared(data_dir: DataDir) -> None:
    other = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    data_dir.record(running(data_dir, worker=ChildRecord(pid=other.pid, started=1)))

    ended = data_dir.end_leftovers()

    assert ended == []
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_disk_with_too_little_room_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(10**9, 10**9, 5_000_000))

    with pytest.raises(StackError) as caught:
        DataDir(tmp_path / "data").prepare()

    assert "5 MB free" in caught.value.message
    assert "--data-dir" in caught.value.remedy


def test_a_disk_that_fills_up_is_told_as_such() -> None:
    with pytest.raises(StackError, match="disk is full"), translated_disk_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "/data/secrets.json")


def test_a_folder_that_cannot_be_made_is_told_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StackError) as caught:
        DataDir(tmp_path / "file" / "data").prepare()

    assert str(tmp_path / "file") in caught.value.message


def test_what_a_killed_stack_recorded_does_not_count_while_its_successor_starts(data_dir: DataDir) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    data_dir.record(dataclasses.replace(running(data_dir), pid=ended.pid))

    with data_dir.locked():
        assert data_dir.running() is None
