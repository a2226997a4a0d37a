"""From an archive that someone sent to the canonical archive that is stored.

The canonical archive is a zip of the images, their bytes unchanged, uncompressed, sorted by name, with fixed
dates, preceded by a ``metadata.jsonl`` with one normalised line an image and by the notices. Equal content
gives equal bytes, hence an equal digest; imported again, it gives itself.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from calotype.archive import ArchiveFile, read_archive, refusal
from calotype.datasets import metadata
from calotype.datasets.images import check_image
from calotype.datasets.layout import (
    DOCUMENTS,
    MAX_NOTICE_BYTES,
    MAX_NOTICES,
    NOTICE,
    Contents,
    Sample,
    arrange,
)
from calotype.datasets.values import DatasetLimits


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The canonical archive that was written."""

    #: sha256 of the file, hexadecimal.
    digest: str
    bytes: int
    images: int
    #: Whether every image has a caption.
    captions: bool
    #: Sorted.
    labels: tuple[str, ...]


def pack(archive: Path, target: Path, limits: DatasetLimits) -> Packed:
    """Validates the dataset in ``archive`` and writes it in canonical form to ``target``.

    Uses twice the dataset's size on disk for a while, and memory for one image and the names.

    Raises:
        Invalid: naming the file and the remedy; ``target`` may then be there in part.
    """
    with _spool(target.parent) as spool:
        contents = _contents(archive, spool, limits)
        samples, notices = arrange(contents)
        _write(target, samples, notices, spool)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Packed(
        digest=digest,
        bytes=target.stat().st_size,
        images=len(samples),
        captions=all(sample.text is not None for sample in samples),
        labels=tuple(sorted({sample.label for sample in samples if sample.label is not None})),
    )


class _Spool:
    """Image bytes in one nameless file, to be read again in another order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0

    def add(self, name: str, data: bytes) -> None:
        self._file.write(data)
        self._places[name] = (self._end, len(data))
        self._end += len(data)

    def read(self, name: str) -> bytes:
        offset, size = self._places[name]
        self._file.seek(offset)
        return self._file.read(size)


@contextmanager
def _spool(folder: Path) -> Iterator[_Spool]:
    # Nameless: the system takes it back even when the process is killed.
    with tempfile.TemporaryFile(dir=folder) as file:
        yield _Spool(file)


def _contents(archive: Path, spool: _Spool, limits: DatasetLimits) -> Contents:
    contents = Contents()
    with closing(read_archive(archive, limits.archive)) as files:
        for file in files:
            base = posixpath.basename(file.name)
            if base in DOCUMENTS:
                _check_document(contents, file)
                contents.documents[file.name] = file.data
            elif NOTICE.fullmatch(base):
                contents.notices[file.name] = file.data
                _check_notice(contents, file)
            else:
                contents.images[file.name] = check_image(file.name, file.data, limits.pixels)
                spool.add(file.name, file.data)
                _check_count(contents, limits)
    return contents


def _check_document(contents: Contents, file: ArchiveFile) -> None:
    remedy = "One such file at the top, of at most 64 MiB, describes all images, subfolders included."
    if posixpath.basename(file.name) in (posixpath.basename(name) for name in contents.documents):
        raise refusal("metadata_invalid", file.name, "is the second of its kind", remedy)
    if len(file.data) > metadata.MAX_BYTES:
        raise refusal("metadata_invalid", file.name, "is too large", remedy)


def _check_notice(contents: Contents, file: ArchiveFile) -> None:
    if len(file.data) > MAX_NOTICE_BYTES or len(contents.notices) > MAX_NOTICES:
        raise refusal("not_an_image", file.name, "is too large for a notice, or one of too many", "Shorten it.")
    try:
        file.data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise refusal("not_an_image", file.name, "is a notice that is not UTF-8 text", "Save it as UTF-8.") from exc


def _check_count(contents: Contents, limits: DatasetLimits) -> None:
    if len(contents.images) > limits.images:
        raise refusal(
            "archive_too_large",
            None,
            f"has more than {limits.images} images",
            "Split it into smaller datasets.",
        )


def _write(target: Path, samples: Sequence[Sample], notices: dict[str, bytes], spool: _Spool) -> None:
    lines = "".join(_line(sample) + "\n" for sample in samples)
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(_entry(metadata.FILE_NAME), lines.encode())
        for name in sorted(notices):
            archive.writestr(_entry(name), notices[name])
        for sample in samples:
            archive.writestr(_entry(sample.file_name), spool.read(sample.source))


def _line(sample: Sample) -> str:
    words = {"text": sample.text, "label": sample.label}
    row = {
        **sample.extra,
        **{key: value for key, value in words.items() if value is not None},
        "file_name": sample.file_name,
        **asdict(sample.facts),
    }
    return json.dumps(row, ensure_ascii=False, sort_keys=True)


def _entry(name: str) -> zipfile.ZipInfo:
    """A stored entry with the earliest date that zip knows, from no system in particular."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    return entry
