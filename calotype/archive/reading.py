"""One way in for every format: what kind of archive is it, and what files does it hold?"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from calotype.archive.limits import ArchiveLimits, Budget, megabytes
from calotype.archive.refusal import refusal
from calotype.archive.tars import read_tar
from calotype.archive.zips import read_zip

#: First bytes of formats that people try, and what they are called.
_FOREIGN = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
}


@dataclass(frozen=True)
class ArchiveFile:
    """A file of an archive, unpacked."""

    #: Relative and safe (:func:`~calotype.archive.names.safe_name`).
    name: str
    data: bytes


def read_archive(path: Path, limits: ArchiveLimits) -> Generator[ArchiveFile, None, None]:
    """Yields the files of a zip or a tar (plain, gzip, bzip2, xz); folders and file managers' litter are left
    out.

    Nothing is written to disk. Close the iterator when leaving it early.

    Raises:
        Invalid: with code archive_unreadable, archive_too_large, archive_too_slow, file_too_large, zip_bomb,
            path_escapes, name_invalid, duplicate_name, link_in_archive, special_file_in_archive,
            encrypted_archive.
    """
    size = path.stat().st_size
    if size > limits.archive_bytes:
        raise refusal(
            "archive_too_large",
            None,
            f"has {megabytes(size)}; at most {megabytes(limits.archive_bytes)} are taken",
            "Split it, or make the images smaller.",
        )
    budget = Budget(limits)
    seen: set[str] = set()
    with path.open("rb") as file:
        head = file.read(8)
        file.seek(0)
        _refuse_foreign(head)
        zipped = head.startswith(b"PK")
        with closing(read_zip(path, limits, budget) if zipped else read_tar(file, budget)) as files:
            for name, data in files:
                if not name:
                    raise refusal("name_invalid", ".", "is a file without a name", "Name it and pack again.")
                if name in seen:
                    raise refusal("duplicate_name", name, "is in the archive twice", "Keep one of the two.")
                seen.add(name)
                yield ArchiveFile(name, data)


def _refuse_foreign(head: bytes) -> None:
    if not head:
        raise refusal("archive_unreadable", None, "is an empty file", "Upload a .zip or .tar.gz.")
    for magic, kind in _FOREIGN.items():
        if head.startswith(magic):
            raise refusal("archive_unreadable", None, f"is packed with {kind}", "Pack it as .zip or .tar.gz.")
