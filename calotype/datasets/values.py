"""Datasets as values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from calotype.archive import ArchiveLimits
from calotype.settings import Settings

#: Largest single image file. It is held in memory while it is decoded.
MAX_FILE_BYTES = 128 << 20


@dataclass(frozen=True, kw_only=True)
class DatasetLimits:
    """What an import accepts."""

    archive: ArchiveLimits
    #: Most images.
    images: int
    #: Most pixels of one image, width times height.
    pixels: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits that the operator set."""
        archive = ArchiveLimits(
            archive_bytes=settings.max_upload_bytes,
            total_bytes=settings.max_dataset_bytes,
            file_bytes=MAX_FILE_BYTES,
            # A macOS archive has a shadow of every file; folders come on top.
            entries=2 * settings.max_dataset_images + 1_000,
        )
        return cls(archive=archive, images=settings.max_dataset_images, pixels=settings.max_pixels)


@dataclass(frozen=True, kw_only=True)
class DatasetImage:
    """One image of a dataset."""

    #: Unique in the dataset, e.g. ``images/0001.png``.
    file_name: str
    #: Its caption, if it has one.
    text: str | None
    #: Its class, if it has one.
    label: str | None
    #: Pixels, as :meth:`DatasetArchive.open_image` gives it: upright.
    width: int
    height: int
    #: Of the file's bytes, hexadecimal.
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One row of ``datasets`` that is ready for use."""

    #: ``ds_`` and 32 hexadecimal digits.
    id: str
    #: None: shared with every tenant.
    tenant_id: UUID | None
    name: str
    #: sha256 of the archive under ``object_key``, hexadecimal.
    digest: str
    object_key: str
    #: Size of that archive.
    bytes: int
    images: int
    #: Whether every image has a caption.
    captions: bool
    #: The classes, sorted; empty when no image has one.
    labels: tuple[str, ...]
    created_at: datetime

    @classmethod
    def from_row(cls, row: Mapping[Any, Any]) -> Self:
        """Builds the value from a row of ``datasets``; other columns are ignored."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        values["labels"] = tuple(row["labels"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class DatasetUpload:
    """A place where a client puts an archive by itself."""

    #: The id the dataset will have, unless its content is already there under another.
    id: str
    name: str
    #: Presigned: PUT the archive's bytes there.
    url: str
    url_expires_at: datetime
