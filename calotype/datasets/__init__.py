"""Datasets: validated, content-addressed sets of images with captions or labels."""

from __future__ import annotations

from calotype.datasets.catalogue import check_name, delete_dataset, find_dataset, list_datasets
from calotype.datasets.collecting import collect_objects, expire_uploads
from calotype.datasets.importing import discard_objects, discard_or_leave, import_archive, import_shared
from calotype.datasets.packing import Packed, pack
from calotype.datasets.reading import DatasetArchive
from calotype.datasets.uploads import complete_upload, create_upload
from calotype.datasets.values import Dataset, DatasetImage, DatasetLimits, DatasetUpload

__all__ = [
    "Dataset",
    "DatasetArchive",
    "DatasetImage",
    "DatasetLimits",
    "DatasetUpload",
    "Packed",
    "check_name",
    "collect_objects",
    "complete_upload",
    "create_upload",
    "delete_dataset",
    "discard_objects",
    "discard_or_leave",
    "expire_uploads",
    "find_dataset",
    "import_archive",
    "import_shared",
    "list_datasets",
    "pack",
]
