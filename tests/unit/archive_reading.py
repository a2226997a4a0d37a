"""Reading archives in tests, within limits so low that a hostile one is soon beyond them."""

from __future__ import annotations

from pathlib import Path

import pytest

from calotype.archive import ArchiveLimits, read_archive
from calotype.errors import Invalid

MIB = 1 << 20
LIMITS = ArchiveLimits(archive_bytes=8 * MIB, total_bytes=8 * MIB, file_bytes=6 * MIB, entries=50, ratio_from=MIB)


def files(path: Path, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    return {file.name: file.data for file in read_archive(path, limits)}


def refused(path: Path, limits: ArchiveLimits = LIMITS) -> Invalid:
    with pytest.raises(Invalid) as caught:
        files(path, limits)
    return caught.value
