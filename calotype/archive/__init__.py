"""Reading zip and tar archives that strangers made.

An archive is only ever read from front to back, each file into memory, under limits on bytes, entries and
time; no name that it holds is used on disk. What is wrong is refused with an
:class:`~calotype.errors.Invalid` whose ``code`` is stable and whose text names the file and the remedy.
"""

from __future__ import annotations

from calotype.archive.limits import ArchiveLimits, megabytes
from calotype.archive.names import safe_name
from calotype.archive.reading import ArchiveFile, read_archive
from calotype.archive.refusal import printable, refusal

__all__ = ["ArchiveFile", "ArchiveLimits", "megabytes", "printable", "read_archive", "refusal", "safe_name"]
