"""The bytes under a tar archive, decompressed step by step in bounded memory whatever the data claim."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Protocol

from calotype.archive.limits import MIB, Budget
from calotype.archive.refusal import refusal
from calotype.errors import Invalid

#: An xz file names the memory its decoder needs; `xz -9` asks for 65 MiB.
XZ_MEMORY = 128 * MIB
_CHUNK = 64 * 1024


class _Decompressor(Protocol):
    """The shape shared by the standard library's incremental decompressors."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor in the shape of the others.

    `gzip.GzipFile` reads a member's name byte by byte without a bound; zlib skips it in C and checks CRC and
    length.
    """

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=XZ_MEMORY)


#: First bytes of a compressed file, and what decompresses it.
DECOMPRESSORS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": _xz,
}


class Stream:
    """What a (compressed) file unpacks to, counted against a budget.

    ``decompressor`` None reads the file as it is. Several compressed streams in a row (pbzip2, pixz, `cat
    a.gz b.gz`) read as one.
    """

    def __init__(self, raw: IO[bytes], budget: Budget, decompressor: Callable[[], _Decompressor] | None) -> None:
        self._raw = raw
        self._budget = budget
        self._new = decompressor
        self._inner = decompressor() if decompressor else None

    def exactly(self, count: int) -> bytes:
        """The next ``count`` bytes; ``Invalid`` (archive_unreadable) when the file ends before."""
        parts = []
        while count > 0:
            part = self.some(min(count, MIB))
            if not part:
                raise _damaged("ends in the middle of a file")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def skip(self, count: int) -> None:
        """Reads past ``count`` bytes without keeping them."""
        while count > 0:
            part = self.some(min(count, MIB))
            if not part:
                raise _damaged("ends in the middle of a file")
            count -= len(part)

    def some(self, limit: int) -> bytes:
        """At least one and at most ``limit`` bytes; none at the end."""
        try:
            data = self._raw.read(limit) if self._inner is None else self._decompressed(limit)
        except (zlib.error, lzma.LZMAError, EOFError) as exc:
            raise _damaged(f"cannot be decompressed ({exc})") from exc
        except OSError as exc:
            # bz2 says "Invalid data stream" with an OSError that has no number; a real one is the disk's.
            if exc.errno is not None:
                raise
            raise _damaged(f"cannot be decompressed ({exc})") from exc
        self._budget.unpacked(len(data), self._raw.tell())
        return data

    def _decompressed(self, limit: int) -> bytes:
        assert self._inner is not None and self._new is not None  # noqa: S101 - narrows for the type checker
        while True:
            # Empty streams cost nothing and give nothing: a file of millions of them must not escape the
            # clock.
            self._budget.tick()
            if self._inner.eof:
                rest = (self._inner.unused_data or self._raw.read(_CHUNK)).lstrip(b"\0")
                if not rest and not (rest := self._raw.read(_CHUNK).lstrip(b"\0")):
                    return b""
                self._inner = self._new()
                data = self._inner.decompress(rest, limit)
            else:
                fed = self._raw.read(_CHUNK) if self._inner.needs_input else b""
                data = self._inner.decompress(fed, limit)
                if not data and not fed and not self._inner.eof:
                    raise EOFError("it ends too early")
            if data:
                return data


def _damaged(problem: str) -> Invalid:
    return refusal("archive_unreadable", None, problem, "It is damaged or incomplete; pack and upload it again.")
