"""Reading a stored dataset: what workers do."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from calotype.archive import refusal
from calotype.datasets import metadata
from calotype.datasets.images import open_rgb
from calotype.datasets.values import DatasetImage

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class DatasetArchive:
    """A canonical archive on disk, as an import wrote it.

    Reads from any thread, and from processes forked from the one that opened it: every read names its place
    in the file, none moves a shared position. Pickles as its path.
    """

    def __init__(self, path: Path) -> None:
        """Opens the archive and reads its metadata.

        Raises:
            Invalid: archive_unreadable, when the file is not such an archive.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                #: The images, sorted by file name.
                self.items: list[DatasetImage] = _items(archive.read(metadata.FILE_NAME))
                self._places = {e.filename: (e.header_offset, e.file_size) for e in archive.infolist()}
        except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as exc:
            raise refusal("archive_unreadable", path.name, "is not a stored dataset", "Fetch it again.") from exc
        self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, file_name: str) -> bytes:
        """The bytes of an image, as they were uploaded; ``KeyError`` when there is none of that name."""
        offset, size = self._places[file_name]
        header = self._at(offset, _LOCAL_HEADER.size)
        *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        return self._at(offset + _LOCAL_HEADER.size + name_bytes + extra_bytes, size)

    def open_image(self, file_name: str) -> Image.Image:
        """An image upright, in RGB, with transparent parts white."""
        return open_rgb(self.read(file_name))

    def close(self) -> None:
        """Closes the file; may be called again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self.items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        return type(self), (self.path,)

    def _at(self, offset: int, size: int) -> bytes:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise EOFError(f"{self.path} is shorter than it says")
            data += more
        return data


def _items(data: bytes) -> list[DatasetImage]:
    return [_item(json.loads(line)) for line in data.splitlines()]


def _item(row: Mapping[str, Any]) -> DatasetImage:
    return DatasetImage(
        file_name=row["file_name"],
        text=row.get("text"),
        label=row.get("label"),
        width=row["width"],
        height=row["height"],
        sha256=row["sha256"],
    )
