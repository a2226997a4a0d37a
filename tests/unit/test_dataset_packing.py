"""From an archive to the canonical dataset, and back out of it."""

from __future__ import annotations

import copy
import errno
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from PIL import Image

from calotype.archive import ArchiveLimits
from calotype.datasets import DatasetArchive, DatasetImage, DatasetLimits, Packed, pack
from calotype.datasets.scratch import scratch
from calotype.errors import DependencyDown, Invalid

MIB = 1 << 20
LIMITS = DatasetLimits(
    archive=ArchiveLimits(archive_bytes=MIB, total_bytes=MIB, file_bytes=MIB, entries=40),
    images=10,
    pixels=10_000,
)


def png(colour: str = "red", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def jsonl(*rows: Mapping[str, object]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zipped(path: Path, entries: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, entries: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


class Packing:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "target" / "dataset.zip"
        self.target.parent.mkdir()

    def __call__(self, entries: Mapping[str, bytes], write: Callable[..., Path] = zipped) -> Packed:
        return pack(write(self.folder / "in", entries), self.target, LIMITS)

    def items(self, entries: Mapping[str, bytes]) -> list[DatasetImage]:
        self(entries)
        with DatasetArchive(self.target) as dataset:
            return dataset.items

    def refused(self, entries: Mapping[str, bytes], code: str, named: str) -> str:
        with pytest.raises(Invalid) as caught:
            self(entries)
        assert caught.value.code == code
        assert named in caught.value.detail
        return caught.value.detail


@pytest.fixture
def packing(tmp_path: Path) -> Packing:
    return Packing(tmp_path)


def test_metadata_gives_captions_and_labels_in_subfolders(packing: Packing) -> None:
    rows = jsonl({"file_name": "images/b.png", "text": "blue", "label": "x"}, {"file_name": "a.png", "text": "red"})
    entries = {"images/b.png": png("blue"), "a.png": png(), "metadata.jsonl": rows}
    packed = packing(entries)
    assert (packed.images, packed.captions, packed.labels) == (2, True, ("x",))
    with DatasetArchive(packing.target) as dataset:
        assert [(item.file_name, item.text, item.label) for item in dataset.items] == [
            ("a.png", "red", None),
            ("images/b.png", "blue", "x"),
        ]
        assert dataset.read("images/b.png") == png("blue")
        assert dataset.open_image("images/b.png").getpixel((0, 0)) == (0, 0, 255)
        assert (dataset.items[0].width, dataset.items[0].height) == (6, 4)


def test_one_folder_a_class_gives_labels(packing: Packing) -> None:
    entries = {"cats/1.png": png(), "dogs/1.png": png("blue"), "dogs/deep/2.png": png("green")}
    packed = packing(entries)
    assert (packed.captions, packed.labels) == (False, ("cats", "dogs"))
    with DatasetArchive(packing.target) as dataset:
        assert [(i.file_name, i.label) for i in dataset.items] == [
            ("cats/1.png", "cats"),
            ("dogs/1.png", "dogs"),
            ("dogs/deep/2.png", "dogs"),
        ]


def test_plain_images_need_no_words(packing: Packing) -> None:
    assert [(i.file_name, i.label) for i in packing.items({"a.png": png(), "b.png": png()})] == [
        ("a.png", None),
        ("b.png", None),
    ]


def test_a_folder_around_everything_is_no_class_and_leaves_the_names(packing: Packing) -> None:
    assert [(i.file_name, i.label) for i in packing.items({"logos/a.png": png(), "logos/b.png": png()})] == [
        ("a.png", None),
        ("b.png", None),
    ]
    classes = packing.items({"data/logos/x/a.png": png(), "data/logos/y/b.png": png()})
    assert [(i.file_name, i.label) for i in classes] == [("x/a.png", "x"), ("y/b.png", "y")]
    rows = jsonl({"file_name": "images/a.png", "text": "red"})
    described = packing.items({"logos/images/a.png": png(), "logos/metadata.jsonl": rows})
    assert [(i.file_name, i.text) for i in described] == [("images/a.png", "red")]


def test_notices_travel_with_the_images(packing: Packing) -> None:
    packing({"NOTICE": b"marks remain their owners'", "set/a.png": png(), "set/LICENSE.txt": b"CC0"})
    with zipfile.ZipFile(packing.target) as archive:
        assert archive.namelist() == ["metadata.jsonl", "LICENSE.txt", "NOTICE", "a.png"]
        assert archive.read("NOTICE") == b"marks remain their owners'"


def test_equal_content_has_an_equal_digest_however_it_was_packed(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png", "label": "x"}, {"file_name": "b.png"})
    entries = {"a.png": png(), "b.png": png("blue"), "metadata.jsonl": rows}
    reordered = {
        "metadata.jsonl": b"\n" + b"\n".join(rows.splitlines()[::-1]),
        "b.png": png("blue"),
        "a.png": png(),
    }
    first = packing(entries)
    stored = packing.target.read_bytes()
    assert packing(reordered, tarred) == first
    assert packing.target.read_bytes() == stored


def test_a_stored_dataset_that_is_imported_again_is_itself(packing: Packing, tmp_path: Path) -> None:
    rows = jsonl({"file_name": "ü/a.png", "text": "é", "note": 1.5}, {"file_name": "b.png"})
    first = packing({"w/ü/a.png": png(), "w/b.png": png("blue"), "w/README.md": b"hi", "w/metadata.jsonl": rows})
    again = tmp_path / "again.zip"
    assert pack(packing.target, again, LIMITS) == first
    assert again.read_bytes() == packing.target.read_bytes()


def test_a_changed_caption_changes_the_digest(packing: Packing) -> None:
    one = packing({"a.png": png(), "metadata.jsonl": jsonl({"file_name": "a.png", "text": "x"})})
    two = packing({"a.png": png(), "metadata.jsonl": jsonl({"file_name": "a.png", "text": "y"})})
    assert one.digest != two.digest


def test_a_file_that_is_no_image_is_named(packing: Packing) -> None:
    packing.refused({"a.png": png(), "notes/virus.png": b"MZ"}, "not_an_image", "notes/virus.png")


def test_an_image_above_the_pixel_limit_is_named(packing: Packing) -> None:
    packing.refused({"a.png": png(), "big.png": png(size=(101, 100))}, "image_too_large", "big.png")


def test_a_zip_inside_is_not_followed(packing: Packing, tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", {"a.png": png()}).read_bytes()
    detail = packing.refused({"a.png": png(), "inner.zip": inner}, "not_an_image", "inner.zip")
    assert "Unpack it first" in detail


def test_more_images_than_allowed_are_refused(packing: Packing) -> None:
    packing.refused({f"{n}.png": png() for n in range(11)}, "archive_too_large", "more than 10 images")


@pytest.mark.parametrize("entries", [{}, {"README": b"x"}, {"metadata.jsonl": b""}, {"__MACOSX/a.png": b""}])
def test_an_archive_without_images_is_refused(packing: Packing, entries: dict[str, bytes]) -> None:
    packing.refused(entries, "empty_dataset", "holds no image")


def test_a_described_image_must_be_there(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png"}, {"file_name": "A.PNG"})
    detail = packing.refused({"a.png": png(), "metadata.jsonl": rows}, "missing_image", "A.PNG")
    assert "line 2" in detail


def test_an_image_without_a_line_is_refused(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png"})
    packing.refused({"a.png": png(), "b.png": png(), "metadata.jsonl": rows}, "metadata_invalid", "b.png")


def test_metadata_in_a_subfolder_is_refused(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png"})
    entries = {"x/a.png": png(), "x/metadata.jsonl": rows, "y/b.png": png()}
    packing.refused(entries, "metadata_invalid", "x/metadata.jsonl")


def test_a_second_metadata_file_is_refused(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png"})
    entries = {"metadata.jsonl": rows, "a.png": png(), "x/metadata.jsonl": rows}
    packing.refused(entries, "metadata_invalid", "x/metadata.jsonl")


def test_the_same_notice_in_two_places_is_refused(packing: Packing) -> None:
    entries = {"README": b"x", "set/README": b"y", "set/a.png": png()}
    packing.refused(entries, "duplicate_name", "notice twice")


def test_an_image_beside_class_folders_is_refused(packing: Packing) -> None:
    packing.refused({"cats/a.png": png(), "b.png": png()}, "layout_unclear", "b.png")


@pytest.mark.parametrize("folder", ["a.png", "README", "metadata.jsonl"])
def test_a_folder_named_like_a_file_is_refused(packing: Packing, folder: str) -> None:
    rows = jsonl({"file_name": "a.png"}, {"file_name": f"{folder}/b.png"})
    entries = {"a.png": png(), f"{folder}/b.png": png(), "README": b"hi", "metadata.jsonl": rows}
    packing.refused(entries, "duplicate_name", f"{folder}/b.png")


def test_facts_that_metadata_claims_are_checked(packing: Packing) -> None:
    rows = jsonl({"file_name": "a.png", "width": 6, "height": 5})
    detail = packing.refused({"a.png": png(), "metadata.jsonl": rows}, "metadata_invalid", "line 1")
    assert "height 5 of an image with 4" in detail


def test_a_notice_that_is_no_text_is_refused(packing: Packing) -> None:
    packing.refused({"a.png": png(), "README": b"\xff\xfe"}, "not_an_image", "README")


def test_packing_leaves_no_file_but_its_target(packing: Packing) -> None:
    packing({"a.png": png()})
    packing.refused({"a.png": png(), "b.png": b"no"}, "not_an_image", "b.png")
    assert [path.name for path in packing.target.parent.iterdir()] == ["dataset.zip"]


def test_a_stored_dataset_can_be_read_after_a_fork_and_from_a_copy(packing: Packing) -> None:
    packing({"a.png": png(), "b.png": png("blue")})
    with DatasetArchive(packing.target) as dataset, copy.copy(dataset) as another:
        assert another.items == dataset.items
        position = os.lseek(dataset._descriptor or 0, 0, os.SEEK_CUR)
        assert another.read("b.png") == dataset.read("b.png") == png("blue")
        # No read moves the position that forked processes share.
        assert os.lseek(dataset._descriptor or 0, 0, os.SEEK_CUR) == position


def test_a_closed_dataset_says_so(packing: Packing) -> None:
    packing({"a.png": png()})
    dataset = DatasetArchive(packing.target)
    dataset.close()
    dataset.close()
    with pytest.raises(ValueError, match="closed"):
        dataset.read("a.png")


def test_a_file_that_is_no_stored_dataset_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"a.png": png()})
    with pytest.raises(Invalid, match="not a stored dataset"):
        DatasetArchive(path)


def test_a_full_disk_is_said_to_be_full_and_leaves_nothing() -> None:
    with pytest.raises(DependencyDown, match="disk is full") as caught, scratch() as folder:
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.code == "disk_full"
    assert not folder.exists()
