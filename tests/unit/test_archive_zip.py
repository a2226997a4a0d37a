"""Hostile and damaged zip archives."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from archive_reading import MIB, files, refused

from calotype.archive import ArchiveLimits


def write_zip(path: Path, entries: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def write_mode(path: Path, name: str, mode: int, data: bytes = b"target") -> Path:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, data)
    return path


def local(name: bytes, data: bytes, size: int, crc: int, method: int = 0) -> bytes:
    """A local header and its data."""
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 33, crc, len(data), size, len(name), 0)
    return head + name + data


def central(name: bytes, packed: int, size: int, crc: int, offset: int, method: int = 0, flags: int = 0) -> bytes:
    """An entry of the directory."""
    fields = (20, 20, flags, method, 0, 33, crc, packed, size, len(name), 0, 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + name


def zip_bytes(body: bytes, directory: list[bytes]) -> bytes:
    listed = b"".join(directory)
    count = len(directory)
    return body + listed + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(listed), len(body), 0)


def test_files_of_a_zip_are_read_with_their_names_and_bytes(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a/b.png": b"one", "ü.png": b"two"}, zipfile.ZIP_DEFLATED)
    assert files(path) == {"a/b.png": b"one", "ü.png": b"two"}


def test_folders_and_litter_are_left_out(tmp_path: Path) -> None:
    names = ["folder/", "__MACOSX/._a.png", "a/.DS_Store", "Thumbs.db", "desktop.ini", "a/._b.png", "a.png"]
    path = write_zip(tmp_path / "a.zip", dict.fromkeys(names, b""))
    assert list(files(path)) == ["a.png"]


def test_a_zip_whose_entry_unpacks_to_hundreds_of_times_its_size_is_a_bomb(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", {"ok.png": b"x", "zeros.png": bytes(3 * MIB)}, zipfile.ZIP_DEFLATED)
    error = refused(path)
    assert error.code == "zip_bomb"
    assert "zeros.png" in error.detail


def test_many_small_bombs_are_one_bomb(tmp_path: Path) -> None:
    entries = {f"{number}.png": bytes(200_000) for number in range(20)}
    error = refused(write_zip(tmp_path / "bomb.zip", entries, zipfile.ZIP_DEFLATED))
    assert error.code == "zip_bomb"


def test_entries_that_share_their_bytes_are_a_bomb(tmp_path: Path) -> None:
    kernel = zlib.compress(bytes(10_000), wbits=-15)
    crc = zlib.crc32(bytes(10_000))
    body = local(b"a.png", kernel, 10_000, crc, method=8)
    directory = [central(b"a.png", len(kernel), 10_000, crc, 0, method=8) for _ in range(3)]
    path = tmp_path / "overlap.zip"
    path.write_bytes(zip_bytes(body, directory))
    error = refused(path)
    assert error.code == "zip_bomb"
    assert "a.png" in error.detail


def test_an_entry_that_lies_about_its_size_gives_no_more_than_it_declares(tmp_path: Path) -> None:
    data = zlib.compress(bytes(2 * MIB), wbits=-15)
    crc = zlib.crc32(bytes(2 * MIB))
    body = local(b"liar.png", data, 100, crc, method=8)
    path = tmp_path / "liar.zip"
    path.write_bytes(zip_bytes(body, [central(b"liar.png", len(data), 100, crc, 0, method=8)]))
    error = refused(path)
    assert error.code == "archive_unreadable"
    assert "liar.png" in error.detail


def test_an_entry_that_declares_more_than_it_has_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "short.zip"
    path.write_bytes(zip_bytes(local(b"a.png", b"abc", 9, 0), [central(b"a.png", 3, 9, 0, 0)]))
    error = refused(path)
    assert error.code == "archive_unreadable"
    assert "a.png" in error.detail


def test_too_many_bytes_in_all_are_refused_though_none_is_compressed(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=MIB, total_bytes=1000, file_bytes=MIB, entries=9)
    error = refused(write_zip(tmp_path / "a.zip", {"a.png": bytes(600), "b.png": bytes(700)}), limits)
    assert error.code == "archive_too_large"
    assert "b.png" in error.detail


def test_a_file_above_the_limit_of_one_file_is_refused(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=MIB, total_bytes=MIB, file_bytes=500, entries=9)
    error = refused(write_zip(tmp_path / "a.zip", {"big.png": bytes(600)}), limits)
    assert error.code == "file_too_large"
    assert "big.png" in error.detail


def test_an_archive_above_the_limit_of_an_upload_is_refused(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=100, total_bytes=MIB, file_bytes=MIB, entries=9)
    assert refused(write_zip(tmp_path / "a.zip", {"a.png": bytes(600)}), limits).code == "archive_too_large"


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    entries = {f"{number}.png": b"" for number in range(51)}
    assert refused(write_zip(tmp_path / "a.zip", entries)).code == "archive_too_large"


def test_a_directory_of_a_million_entries_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.zip"
    directory = central(b"a", 0, 0, 0, 0) * 100_000
    path.write_bytes(
        local(b"a", b"", 0, 0) + directory + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 31, 0)
    )
    monkeypatch.setattr(zipfile, "ZipInfo", None)
    assert refused(path).code == "archive_too_large"


def test_reading_stops_when_its_time_is_over(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=MIB, total_bytes=MIB, file_bytes=MIB, entries=9, seconds=-1.0)
    assert refused(write_zip(tmp_path / "a.zip", {"a.png": b"x"}), limits).code == "archive_too_slow"


@pytest.mark.parametrize(
    "name", ["../up.png", "a/../../up.png", "/etc/passwd", "C:/up.png", "c:up.png", "//host/up.png"]
)
def test_a_path_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str) -> None:
    error = refused(write_zip(tmp_path / "a.zip", {"ok.png": b"x", name: b"x"}))
    assert error.code == "path_escapes"
    assert name in error.detail


@pytest.mark.parametrize(("raw", "shown"), [(b"a\\b.png", "a\\b.png"), (b"a.png\0.exe", "a.png\\x00.exe")])
def test_a_name_with_a_backslash_or_a_nul_is_refused(tmp_path: Path, raw: bytes, shown: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(local(raw, b"x", 1, zlib.crc32(b"x")), [central(raw, 1, 1, zlib.crc32(b"x"), 0)]))
    error = refused(path)
    assert error.code == "path_escapes"
    assert shown in error.detail


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(local(b"\xff.png", b"", 0, 0), [central(b"\xff.png", 0, 0, 0, 0)]))
    error = refused(path)
    assert error.code == "name_invalid"
    assert "ÿ.png" in error.detail


def test_a_utf8_name_without_the_flag_is_read_as_macos_meant_it(tmp_path: Path) -> None:
    raw = "u\u0308.png".encode()
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(local(raw, b"", 0, 0), [central(raw, 0, 0, 0, 0)]))
    assert list(files(path)) == ["ü.png"]


@pytest.mark.parametrize("name", ["tab\t.png", "a" * 300 + ".png", "/".join(["d"] * 20) + "/a.png"])
def test_a_name_that_no_file_system_wants_is_refused(tmp_path: Path, name: str) -> None:
    error = refused(write_zip(tmp_path / "a.zip", {name: b"x"}))
    assert error.code == "name_invalid"
    assert "\t" not in error.detail
    assert len(error.detail) < 400


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    error = refused(write_mode(tmp_path / "a.zip", "link.png", stat.S_IFLNK | 0o777))
    assert error.code == "link_in_archive"
    assert "link.png" in error.detail


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_device_or_pipe_is_refused(tmp_path: Path, kind: int) -> None:
    error = refused(write_mode(tmp_path / "a.zip", "device.png", kind | 0o600))
    assert error.code == "special_file_in_archive"
    assert "device.png" in error.detail


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(local(b"a.png", b"x", 1, 0), [central(b"a.png", 1, 1, 0, 0, flags=1)]))
    error = refused(path)
    assert error.code == "encrypted_archive"
    assert "a.png" in error.detail


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_whose_memory_cannot_be_bounded_is_refused(tmp_path: Path, method: int) -> None:
    error = refused(write_zip(tmp_path / "a.zip", {"a.png": b"x"}, method))
    assert error.code == "archive_unreadable"
    assert "a.png" in error.detail


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    crc = zlib.crc32(b"x")
    one, two = local(b"a.png", b"x", 1, crc), local(b"./a.png", b"x", 1, crc)
    path = tmp_path / "a.zip"
    path.write_bytes(zip_bytes(one + two, [central(b"a.png", 1, 1, crc, 0), central(b"./a.png", 1, 1, crc, len(one))]))
    error = refused(path)
    assert error.code == "duplicate_name"
    assert "a.png" in error.detail


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": b"content"})
    path.write_bytes(path.read_bytes().replace(b"content", b"c0ntent", 1))
    error = refused(path)
    assert error.code == "archive_unreadable"
    assert "a.png" in error.detail


@pytest.mark.parametrize("keep", [0, 3, 60, -1])
def test_a_zip_that_was_cut_off_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": bytes(1000)})
    path.write_bytes(path.read_bytes()[:keep])
    assert refused(path).code == "archive_unreadable"


@pytest.mark.parametrize(
    ("head", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!\x1a", "RAR"), (b"\x28\xb5\x2f\xfd", "zstd")]
)
def test_other_formats_are_named(tmp_path: Path, head: bytes, kind: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(head + bytes(100))
    error = refused(path)
    assert error.code == "archive_unreadable"
    assert kind in error.detail
    assert ".zip or .tar.gz" in error.detail
