"""The zip of NVIDIA's GAN tools: what `dataset.json` may say, and which labels images get by it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from calotype.archive import ArchiveLimits
from calotype.datasets import DatasetArchive, DatasetLimits, pack
from calotype.datasets.dataset_json import parse
from calotype.errors import Invalid

MIB = 1 << 20
LIMITS = DatasetLimits(
    archive=ArchiveLimits(archive_bytes=MIB, total_bytes=MIB, file_bytes=MIB, entries=40), images=10, pixels=10_000
)
FIRST, SECOND = "00000/img00000000.png", "00001/img00000001.png"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def described(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


@pytest.fixture
def labels_of(tmp_path: Path) -> Callable[..., list[tuple[str, str | None]]]:
    """Packs FIRST and SECOND with further files; gives each image's label."""

    def read(files: dict[str, bytes], folder: str = "") -> list[tuple[str, str | None]]:
        entries = {FIRST: png("red"), SECOND: png("blue"), **files}
        with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
            for name, data in entries.items():
                archive.writestr(folder + name, data)
        pack(tmp_path / "in.zip", tmp_path / "out.zip", LIMITS)
        with DatasetArchive(tmp_path / "out.zip") as dataset:
            return [(item.file_name, item.label) for item in dataset.items]

    return read


def test_class_numbers_become_labels_of_the_same_spelling(labels_of: Callable[..., Any]) -> None:
    files = {"dataset.json": described([[SECOND, 10], [FIRST, 3]])}
    assert labels_of(files) == [(FIRST, "3"), (SECOND, "10")]


def test_classes_may_have_names(labels_of: Callable[..., Any]) -> None:
    files = {"dataset.json": described([[FIRST, "blue bird"], [SECOND, "fox"]])}
    assert labels_of(files) == [(FIRST, "blue bird"), (SECOND, "fox")]


def test_null_means_no_labels_and_folders_are_none_either(labels_of: Callable[..., Any]) -> None:
    assert labels_of({"dataset.json": described(None)}) == [(FIRST, None), (SECOND, None)]
    assert labels_of({}) == [(FIRST, "00000"), (SECOND, "00001")]


def test_a_folder_around_everything_is_left_out_of_the_names(labels_of: Callable[..., Any]) -> None:
    files = {"dataset.json": described([[FIRST, 0], [SECOND, 1]])}
    assert labels_of(files, folder="ffhq/") == [(FIRST, "0"), (SECOND, "1")]


def refused(call: Callable[[], object]) -> Invalid:
    with pytest.raises(Invalid) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("files", "code", "said"),
    [
        (
            {"dataset.json": described([[FIRST, 0], [SECOND, 1], ["00000/gone.png", 1]])},
            "missing_image",
            "'00000/gone.png' has label 3 in dataset.json but is not in the archive",
        ),
        (
            {"dataset.json": described([[FIRST, 0]])},
            "metadata_invalid",
            f"'{SECOND}' has no label in dataset.json",
        ),
        ({"dataset.json": described([])}, "metadata_invalid", "has no label in dataset.json"),
        ({"00000/dataset.json": described(None)}, "metadata_invalid", "lies in a subfolder"),
        (
            {"dataset.json": described(None), "metadata.jsonl": b'{"file_name": "a.png"}'},
            "layout_unclear",
            "both describe the images",
        ),
        ({"dataset.json": described(None), "sub/dataset.json": described(None)}, "metadata_invalid", "second of its"),
    ],
)
def test_labels_that_do_not_fit_the_images_are_refused(
    files: dict[str, bytes], code: str, said: str, labels_of: Callable[..., Any]
) -> None:
    error = refused(lambda: labels_of(files))
    assert error.code == code
    assert said in error.detail


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([["a.png", 0], ["b.png", "fox"]], "label 2 has a class by name, and others have class numbers"),
        ([["a.png", 0], ["b.png", [0.5, 1]]], "label 2 is a list of values for 'b.png'"),
        ([["a.png", 0.5]], "label 1 has a class that is neither a whole number nor a text"),
        ([["a.png", True]], "neither a whole number nor a text"),
        ([["a.png", None]], "neither a whole number nor a text"),
        ([["a.png", " "]], "empty, too long or not printable"),
        ([["a.png", "x" * 101]], "empty, too long or not printable"),
        ([["a.png", "a\nb"]], "empty, too long or not printable"),
        ([["a.png", 0], ["./a.png", 1]], "label 2 is for 'a.png' again, after label 1"),
        ([["a.png"]], "label 1 is no pair of a file name and a class"),
        ([[3, "a.png"]], "no pair"),
        ({"a.png": 0}, "has 'labels' that are no list"),
    ],
)
def test_a_wrong_label_is_refused_with_its_number(labels: object, said: str) -> None:
    error = refused(lambda: parse(described(labels)))
    assert error.code == "metadata_invalid"
    assert said in error.detail


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{}", "has no 'labels'"),
        (b'{"label": []}', "has no 'labels'"),
        (b"[]", "has no 'labels'"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"labels": [["\xff", 0]]}', "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_labels_is_refused(data: bytes, said: str) -> None:
    error = refused(lambda: parse(data))
    assert error.code == "metadata_invalid"
    assert said in error.detail


def test_a_file_name_that_climbs_out_is_refused() -> None:
    assert refused(lambda: parse(described([["../a.png", 0]]))).code == "path_escapes"
