"""The shipped starter assets, and the words of their captions."""

from __future__ import annotations

import ast
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import starter
from starter.colours import COLOURS, first_colour
from starter.recipe.captions import Words, captions, plain_title, shape_words
from starter.recipe.data import load_images, load_rows

ZIPS = (starter.train_dataset(), starter.heldout_dataset(), starter.brand_dataset())

#: All starter assets must stay below this, so that the wheel does.
LIMIT_BYTES = 40_000_000


@pytest.mark.parametrize("path", ZIPS, ids=lambda path: path.stem)
def test_a_dataset_holds_what_its_metadata_says(path: Path) -> None:
    rows = load_rows(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert "CC0" in archive.read("NOTICE").decode()
    assert sorted(row["file_name"] for row in rows) == sorted(name for name in names if name.startswith("images/"))
    assert len(set(names)) == len(names)
    for row in rows:
        assert row["label"] in COLOURS
        assert row["label"] in row["text"].replace(",", "").split()


@pytest.mark.parametrize("path", ZIPS, ids=lambda path: path.stem)
def test_images_are_logos_on_white_and_labels_name_their_first_colour(path: Path) -> None:
    rows, images = load_rows(path), load_images(path)
    for row, image in list(zip(rows, images, strict=True))[::10]:
        pixels = np.asarray(image)
        assert pixels.shape == (64, 64, 3)
        margin = np.concatenate(
            [pixels[:6].ravel(), pixels[-6:].ravel(), pixels[:, :6].ravel(), pixels[:, -6:].ravel()]
        )
        assert (margin == 255).all()
        assert first_colour(image) == row["label"]


def test_no_brand_is_on_both_sides() -> None:
    train, held = ({row["brand"] for row in load_rows(path)} for path in ZIPS[:2])
    assert not {brand[:3] for brand in train} & {brand[:3] for brand in held}


def test_no_image_is_in_a_dataset_twice_or_on_both_sides() -> None:
    pictures = [image.tobytes() for path in ZIPS[:2] for image in load_images(path)]
    assert len(set(pictures)) == len(pictures)


def test_brand_logos_are_training_logos() -> None:
    train = {row["file_name"]: row for row in load_rows(starter.train_dataset())}
    brand = load_rows(starter.brand_dataset())
    assert len(brand) >= 24
    assert all(train[row["file_name"]] == row for row in brand)


def test_descriptions_say_how_many_logos_there_are() -> None:
    for path, metadata in zip(ZIPS, starter.DATASETS, strict=True):
        assert f"{len(load_rows(path)):,} " in metadata.description


def test_all_assets_together_fit_into_the_wheel() -> None:
    folder = starter.train_dataset().parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < LIMIT_BYTES


def test_naming_the_assets_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(starter.__file__).read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(module).split(".")[0] for module in modules} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("shape", "box", "words"),
    [
        ("ellipse", (8, 8, 56, 56), ("solid", "round")),
        ("rectangle", (8, 8, 56, 56), ("solid", "square")),
        ("rectangle", (8, 20, 56, 44), ("solid", "wide")),
        ("rectangle", (20, 8, 44, 56), ("solid", "tall")),
    ],
)
def test_forms_have_names(shape: str, box: tuple[int, int, int, int], words: tuple[str, ...]) -> None:
    image = Image.new("RGB", (64, 64), "white")
    getattr(ImageDraw.Draw(image), shape)(box, fill="black")
    assert shape_words(image) == words


def test_an_outline_is_thin() -> None:
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((8, 8, 56, 56), outline="black", width=3)
    assert shape_words(image) == ("thin", "round")


def test_every_caption_names_the_first_colour() -> None:
    words = Words(colours=("blue", "orange"), shape=("solid", "round"), title="example")
    found = captions(words)
    assert found[0] == "blue and orange solid round logo"
    assert found[2] == "example logo, blue and orange"
    assert all("blue" in caption for caption in found)


def test_titles_are_plain_words() -> None:
    assert plain_title("C++ Builder, the 2nd & best IDE") == "c builder the 2nd"
