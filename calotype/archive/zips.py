"""Zip archives: every entry is judged by the directory before the first byte of any is unpacked."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.archive.limits import MIB, ArchiveLimits, Budget, too_many_entries
from calotype.archive.names import is_litter, safe_name
from calotype.archive.refusal import refusal

_ENTRY = b"PK\x01\x02"
#: Bytes of an entry in the directory, and of one before its data, without names.
_DIRECTORY_HEADER = 46
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1 | 0x40 | 0x2000
#: `zipfile` bounds the output of these two only; bzip2 and LZMA it unpacks a whole block at a time.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: What `zipfile` raises for data that are not a proper zip.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class _GuardedFile(io.FileIO):
    """A file that refuses to give `zipfile` a directory with too many entries.

    `zipfile` reads the whole directory with one call and makes an object of each entry, before anyone can
    look at how many there are.
    """

    def __init__(self, path: Path, limits: ArchiveLimits) -> None:
        super().__init__(path, "r")
        self._limits = limits

    def read(self, size: int | None = -1, /) -> bytes:
        count = self._limits.entries
        # An entry is its header, a name and perhaps extra fields, which seldom have a few dozen bytes each.
        most = max(count * (_DIRECTORY_HEADER + 400), MIB)
        data = super().read(most + 1 if size is None or size < 0 else min(size, most + 1)) or b""
        if len(data) > most or (len(data) > count * _DIRECTORY_HEADER and data.count(_ENTRY) > count):
            raise too_many_entries(self._limits)
        return data


def read_zip(path: Path, limits: ArchiveLimits, budget: Budget) -> Generator[tuple[str, bytes], None, None]:
    """Yields the safe name and the content of each file, in the directory's order.

    Raises:
        Invalid: the archive is damaged, hostile or above a limit.
    """
    with _GuardedFile(path, limits) as file:
        with _damage(None):
            # Names without the UTF-8 flag are UTF-8 all the same when macOS packed them.
            archive = zipfile.ZipFile(file, metadata_encoding="utf-8")
        with archive:
            entries = archive.infolist()
            _check_sizes(entries, path.stat().st_size, budget)
            _check_overlap(entries, archive.start_dir)
            for name, entry in [(_check_entry(entry, budget), entry) for entry in entries]:
                if not entry.is_dir() and not is_litter(name):
                    budget.file(name, entry.file_size)
                    yield name, _content(archive, entry, name, budget)


def _check_entry(entry: zipfile.ZipInfo, budget: Budget) -> str:
    """The entry's safe name; raises when it is anything but a plain file or folder."""
    # `filename` is cut at a NUL and has separators replaced; this is what the archive really says.
    name = safe_name(entry.orig_filename)
    budget.entry(name)
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind == stat.S_IFLNK:
        raise refusal("link_in_archive", name, "is a symbolic link", "Pack the file itself (zip without `--symlinks`).")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refusal("special_file_in_archive", name, "is neither a file nor a folder", "Leave it out.")
    if entry.flag_bits & _ENCRYPTED:
        raise refusal("encrypted_archive", name, "is encrypted", "Pack without a password.")
    if entry.compress_type not in _METHODS:
        raise refusal(
            "archive_unreadable",
            name,
            f"is compressed with method {entry.compress_type}",
            "Pack again with deflate, the usual method of zip.",
        )
    return name


def _check_sizes(entries: list[zipfile.ZipInfo], archive_bytes: int, budget: Budget) -> None:
    """The declared sizes. They bind: `zipfile` gives no more bytes of a file than its entry declares."""
    for entry in entries:
        budget.expect(entry.file_size, entry.compress_size, entry.filename)
    if entries:
        largest = max(entries, key=lambda entry: entry.file_size)
        budget.expect(sum(entry.file_size for entry in entries), archive_bytes, largest.filename)


def _check_overlap(entries: list[zipfile.ZipInfo], end: int) -> None:
    """No two entries may share bytes, which is how a small zip holds a large file many times over.

    (D. Fifield, "A better zip bomb", WOOT 2019.) The local extra field is not counted, since only the local
    header tells its length; without it the packed sizes still add up to no more than the archive.
    """
    for entry in sorted(entries, key=lambda entry: entry.header_offset, reverse=True):
        size = _LOCAL_HEADER + len(entry.orig_filename.encode()) + entry.compress_size
        if not 0 <= entry.header_offset <= end - size:
            raise refusal("zip_bomb", entry.filename, "shares its bytes with another entry", "Pack the files anew.")
        end = entry.header_offset


def _content(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, budget: Budget) -> bytes:
    parts = []
    with _damage(name), archive.open(entry) as file:
        while part := file.read(MIB):
            parts.append(part)
            # Sizes were settled before; the clock runs on.
            budget.tick()
    data = b"".join(parts)
    if len(data) != entry.file_size:
        raise refusal("archive_unreadable", name, "ends too early", "Pack and upload the archive again.")
    return data


@contextmanager
def _damage(name: str | None) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as exc:
        shown = bytes(exc.object).decode("latin-1")
        raise refusal("name_invalid", shown, "has a name that is not UTF-8", "Rename the file and pack again.") from exc
    except _DAMAGE as exc:
        reason = str(exc) or type(exc).__name__
        raise refusal(
            "archive_unreadable",
            name,
            f"cannot be read ({reason[:200]})",
            "Pack and upload the archive again.",
        ) from exc
