"""Fetching a file over HTTP so that it appears whole, with the right digest, or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

_CHUNK_BYTES = 1 << 20


class TransferError(Exception):
    """What came is not what was announced."""


def fetch(http: httpx.Client, url: str, target: Path, sha256: str) -> None:
    """Stream ``url`` into ``target``.

    Raises:
        TransferError: the bytes have another digest.
        httpx.TransportError, httpx.HTTPStatusError: no answer, or one that is not a success.
    """
    digest = hashlib.sha256()
    with _unfinished(target) as partial:
        with http.stream("GET", url) as response, partial.open("wb") as out:
            response.raise_for_status()
            for chunk in response.iter_bytes(_CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != sha256:
            raise TransferError(f"it came with the digest {digest.hexdigest()}, not {sha256}")
        partial.replace(target)


def has_digest(path: Path, sha256: str) -> bool:
    """Whether ``path`` is a file with these contents."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == sha256


def plain_name(name: str) -> str:
    """``name`` if it is safe as a file name: the server is not trusted to say where on this disk a file goes.

    Raises:
        TransferError: it has a path in it.
    """
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise TransferError(f"{name!r} is not a plain file name")
    return name


@contextmanager
def _unfinished(target: Path) -> Iterator[Path]:
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
