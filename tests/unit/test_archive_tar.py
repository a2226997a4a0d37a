"""Hostile and damaged tar archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from archive_reading import MIB, files, refused

from calotype.archive import ArchiveLimits


def tar_bytes(entries: Mapping[str, bytes], style: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=style) as tar:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def with_entry(tmp_path: Path, name: str, kind: bytes, target: str = "") -> Path:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    body = tar_bytes({"ok.png": b"x"})[: 2 * tarfile.BLOCKSIZE]
    return saved(tmp_path / "a.tar", body + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_files_of_every_kind_of_tar_are_read(tmp_path: Path, style: int, compress: Callable[[bytes], bytes]) -> None:
    long = f"{'d' * 90}/{'f' * 90}.png"
    entries = {"a.png": bytes(1000), "empty.png": b"", long: b"y" * 512, "ü/b.png": b"z"}
    path = saved(tmp_path / "a.tar", compress(tar_bytes(entries, style)))
    assert files(path) == entries


def test_several_compressed_streams_in_a_row_are_one(tmp_path: Path) -> None:
    whole = tar_bytes({"a.png": bytes(5000)})
    path = saved(tmp_path / "a.tgz", gzip.compress(whole[:700]) + gzip.compress(b"") + gzip.compress(whole[700:]))
    assert files(path) == {"a.png": bytes(5000)}


def test_folders_litter_and_global_notes_are_left_out(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"comment": "0123"}) as tar:
        folder = tarfile.TarInfo("./logos")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("./._a.png", "./logos/.DS_Store", "./logos/a.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    assert list(files(saved(tmp_path / "a.tar", buffer.getvalue()))) == ["logos/a.png"]


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_that_unpacks_to_hundreds_of_times_its_size_is_a_bomb(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    error = refused(saved(tmp_path / "a.tgz", compress(tar_bytes({"zeros.png": bytes(3 * MIB)}))))
    assert error.code == "zip_bomb"
    assert "zeros.png" in error.detail


def test_a_bomb_hidden_in_litter_or_behind_the_end_is_a_bomb(tmp_path: Path) -> None:
    litter = gzip.compress(tar_bytes({"._zeros": bytes(3 * MIB)}))
    behind = gzip.compress(tar_bytes({"a.png": b"x"}) + bytes(3 * MIB))
    assert refused(saved(tmp_path / "a.tgz", litter)).code == "zip_bomb"
    assert refused(saved(tmp_path / "b.tgz", behind)).code == "zip_bomb"


def test_too_many_bytes_in_all_are_refused_though_none_is_compressed(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=MIB, total_bytes=4000, file_bytes=MIB, entries=9)
    path = saved(tmp_path / "a.tar", tar_bytes({"a.png": bytes(2000), "b.png": bytes(2000)}))
    error = refused(path, limits)
    assert error.code == "archive_too_large"
    assert "b.png" in error.detail


def test_a_file_above_the_limit_of_one_file_is_refused_by_its_header(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.png")
    info.size = 1 << 40
    error = refused(saved(tmp_path / "a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)))
    assert error.code == "file_too_large"
    assert "huge.png" in error.detail


def test_an_extension_header_of_any_size_is_not_read_into_memory(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.type = kind
        info.size = 1 << 34
        path = saved(tmp_path / "a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        assert refused(path).code == "archive_unreadable"


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    entries = {f"{number}.png": b"" for number in range(51)}
    assert refused(saved(tmp_path / "a.tar", tar_bytes(entries))).code == "archive_too_large"


def test_reading_stops_when_its_time_is_over(tmp_path: Path) -> None:
    limits = ArchiveLimits(archive_bytes=MIB, total_bytes=MIB, file_bytes=MIB, entries=9, seconds=-1.0)
    assert refused(saved(tmp_path / "a.tar", tar_bytes({"a.png": b"x"})), limits).code == "archive_too_slow"


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/passwd", "C:/up.png", "a\\b.png"])
def test_a_path_that_leads_out_of_the_archive_is_refused(tmp_path: Path, name: str, style: int) -> None:
    error = refused(saved(tmp_path / "a.tar", tar_bytes({"ok.png": b"x", name: b"x"}, style)))
    assert error.code == "path_escapes"
    assert name in error.detail


def test_a_path_that_an_extended_header_leads_out_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("innocent.png")
    info.pax_headers = {"path": "../up.png"}
    error = refused(saved(tmp_path / "a.tar", info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)))
    assert error.code == "path_escapes"
    assert "../up.png" in error.detail


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(tmp_path: Path, kind: bytes) -> None:
    error = refused(with_entry(tmp_path, "link.png", kind, target="/etc/passwd"))
    assert error.code == "link_in_archive"
    assert "link.png" in error.detail
    assert "dereference" in error.detail


@pytest.mark.parametrize(
    "kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"D", b"V", b"?"]
)
def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path, kind: bytes) -> None:
    error = refused(with_entry(tmp_path, "device.png", kind))
    assert error.code == "special_file_in_archive"
    assert "device.png" in error.detail


def test_a_sparse_file_in_pax_form_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999999"}
    error = refused(saved(tmp_path / "a.tar", info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)))
    assert error.code == "special_file_in_archive"
    assert "sparse.png" in error.detail


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "a.tar", tar_bytes({"a.png": b"x", "./a.png": b"y"})))
    assert error.code == "duplicate_name"
    assert "a.png" in error.detail


def test_a_file_without_a_name_is_refused(tmp_path: Path) -> None:
    assert refused(saved(tmp_path / "a.tar", tar_bytes({".": b"x"}))).code == "name_invalid"


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    data = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    data[0:1] = b"\xff"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    error = refused(saved(tmp_path / "a.tar", bytes(data) + bytes(1024)))
    assert error.code == "name_invalid"
    assert "\\udcff" in error.detail


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    data = bytearray(tar_bytes({"a.png": b"x", "b.png": b"y"}, tarfile.GNU_FORMAT))
    data[1024 + 10] ^= 0xFF
    assert refused(saved(tmp_path / "a.tar", bytes(data))).code == "archive_unreadable"


def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = -512
    path = saved(tmp_path / "a.tar", info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert refused(path).code == "archive_unreadable"


@pytest.mark.parametrize(
    "record", [b"9999 path=a\n", b"0 path=a\n", b"x path=a\n", b"7 path\n", b"12 size=-12\n", b"11 size=ab\n"]
)
def test_a_malformed_extended_header_is_refused(tmp_path: Path, record: bytes) -> None:
    extended = tarfile.TarInfo("x")
    extended.type = tarfile.XHDTYPE
    extended.size = len(record)
    head = extended.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512)
    path = saved(tmp_path / "a.tar", head + tar_bytes({"a.png": b"x"}))
    assert refused(path).code == "archive_unreadable"


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9])
def test_a_tar_that_was_cut_off_is_refused(tmp_path: Path, compress: Callable[[bytes], bytes], keep: float) -> None:
    noise = bytes(number * number % 251 for number in range(20_000))
    whole = compress(tar_bytes({"a.png": noise, "b.png": noise})[: 2 * 20_992 + 1024])
    assert refused(saved(tmp_path / "a.tar", whole[: int(len(whole) * keep)])).code == "archive_unreadable"


def test_a_wrong_checksum_at_the_end_is_noticed(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(tar_bytes({"a.png": b"x"})))
    data[-6] ^= 0xFF
    assert refused(saved(tmp_path / "a.tgz", bytes(data))).code == "archive_unreadable"


def test_what_is_no_archive_at_all_is_said_to_be_none(tmp_path: Path) -> None:
    error = refused(saved(tmp_path / "a.tar", b"hello, world! " * 200))
    assert error.code == "archive_unreadable"
    assert "no zip or tar" in error.detail


def test_an_xz_stream_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    data = bytearray(lzma.compress(tar_bytes({"a.png": b"x"})))
    # The block header follows the 12 bytes of the stream header: size, filter id (0x21), options, CRC.
    block = data[12 : 12 + (data[12] + 1) * 4]
    dictionary = block.index(b"\x21\x01") + 2
    block[dictionary] = 36  # 1 GiB
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    data[12 : 12 + len(block)] = block
    error = refused(saved(tmp_path / "a.txz", bytes(data)))
    assert error.code == "archive_unreadable"
    assert "emory" in error.detail
