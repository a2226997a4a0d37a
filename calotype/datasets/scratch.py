"""Temporary files of an import."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.errors import DependencyDown


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Raises:
        DependencyDown: the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="calotype-import-") as folder:
            yield Path(folder)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = tempfile.gettempdir()
        raise DependencyDown(
            f"The disk is full: importing a dataset needs up to three times its size in {place}. "
            "Free space there, or set TMPDIR to a folder on another disk.",
            code="disk_full",
        ) from exc
