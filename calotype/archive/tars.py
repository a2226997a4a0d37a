"""Tar archives, read block by block.

The headers are decoded by the standard library's `tarfile.TarInfo`; the walk from one to the next is ours,
because `TarFile` takes a damaged header for the end of the archive, reads extension headers of any size into
memory and recurses for each.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator
from dataclasses import dataclass
from typing import IO

from calotype.archive.limits import Budget
from calotype.archive.names import is_litter, safe_name
from calotype.archive.refusal import refusal
from calotype.archive.streams import DECOMPRESSORS, Stream
from calotype.errors import Invalid

_BLOCK = tarfile.BLOCKSIZE
#: An extension header holds a long name, and on some systems attributes that are of no use here.
_MAX_EXTENSION = 1 << 20
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_GNU_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = {
    tarfile.SYMTYPE: ("a symbolic link", "tar --dereference"),
    tarfile.LNKTYPE: ("a hard link", "tar --hard-dereference"),
}


@dataclass(frozen=True, kw_only=True)
class _Header:
    """One entry: its header and what extension headers before it said."""

    name: str
    type: bytes
    size: int


def read_tar(file: IO[bytes], budget: Budget) -> Generator[tuple[str, bytes], None, None]:
    """Yields the safe name and the content of each file, in the archive's order.

    Raises:
        Invalid: the archive is damaged, hostile or above a limit.
    """
    head = file.read(6)
    file.seek(0)
    new = next((made for magic, made in DECOMPRESSORS.items() if head.startswith(magic)), None)
    stream = Stream(file, budget, new)
    while (header := _next_header(stream)) is not None:
        name = safe_name(header.name)
        budget.entry(name)
        _check_type(name or ".", header.type)
        padding = -header.size % _BLOCK
        if header.type == tarfile.DIRTYPE or is_litter(name):
            stream.skip(header.size + padding)
            continue
        budget.file(name, header.size)
        data = stream.exactly(header.size)
        stream.skip(padding)
        yield name, data
    # To the end, so that a wrong checksum there is noticed.
    while stream.some(1 << 20):
        pass


def _next_header(stream: Stream) -> _Header | None:
    """The next entry's header; None at the end mark."""
    long_name: str | None = None
    records: dict[str, str] = {}
    while True:
        block = stream.exactly(_BLOCK)
        if block.count(0) == _BLOCK:
            return None
        info = _decoded(block)
        if info.type in _GNU_LONG:
            text = _extension(stream, info).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            # A long link target is read past: the link itself follows and is refused.
            long_name = text if info.type == tarfile.GNUTYPE_LONGNAME else long_name
        elif info.type in _PAX:
            records |= _pax_records(_extension(stream, info))
        elif info.type == tarfile.XGLTYPE:
            _check_global(_pax_records(_extension(stream, info)))
        else:
            return _merged(info, long_name, records)


def _decoded(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as exc:
        raise _unreadable(f"is no zip or tar archive, or is damaged ({exc})") from exc
    if info.size < 0:
        raise _unreadable("has a file of negative size")
    return info


def _merged(info: tarfile.TarInfo, long_name: str | None, records: dict[str, str]) -> _Header:
    name = records.get("path", long_name if long_name is not None else info.name)
    sparse = info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse.") for key in records)
    if sparse:
        raise refusal("special_file_in_archive", name, "is stored as a sparse file", "Pack without `--sparse`.")
    size = info.size
    if "size" in records:
        if not (records["size"].isascii() and records["size"].isdigit() and len(records["size"]) <= 19):
            raise _unreadable("has a file whose size is no number")
        size = int(records["size"])
    return _Header(name=name, type=info.type, size=size)


def _extension(stream: Stream, info: tarfile.TarInfo) -> bytes:
    if info.size > _MAX_EXTENSION:
        raise _unreadable("has an extension header of more than 1 MiB")
    data = stream.exactly(info.size)
    stream.skip(-info.size % _BLOCK)
    return data


def _pax_records(data: bytes) -> dict[str, str]:
    """The ``length key=value`` lines of an extended header (POSIX.1-2001, pax Interchange Format)."""
    records = {}
    while data.rstrip(b"\0"):
        length, found, _ = data[:20].partition(b" ")
        if not (found and length.isdigit() and len(length) < int(length) <= len(data)):
            raise _unreadable("has a malformed extended header")
        line, data = data[len(length) + 1 : int(length)], data[int(length) :]
        key, found, value = line.removesuffix(b"\n").partition(b"=")
        if not found:
            raise _unreadable("has a malformed extended header")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
    return records


def _check_global(records: dict[str, str]) -> None:
    """Global records are notes (`git archive` leaves one); refused when they would change the files after them."""
    if "path" in records or "size" in records or any(key.startswith("GNU.sparse.") for key in records):
        raise _unreadable("has a global header that renames or resizes files")


def _check_type(name: str, kind: bytes) -> None:
    if kind in _LINKS:
        what, command = _LINKS[kind]
        raise refusal("link_in_archive", name, f"is {what}", f"Pack the file itself (`{command}`).")
    if kind not in (*_REGULAR, tarfile.DIRTYPE):
        raise refusal("special_file_in_archive", name, "is neither a file nor a folder", "Leave it out.")


def _unreadable(problem: str) -> Invalid:
    return refusal("archive_unreadable", None, problem, "Pack the images as .zip or .tar.gz and upload again.")
