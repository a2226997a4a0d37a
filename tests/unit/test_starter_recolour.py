"""The GAN's training images: logos in all orders of their colour channels."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from starter.colours import first_colour
from starter.recipe.data import CHANNEL_ORDERS
from starter.recipe.recolour import LABELS, Recolourings, logos, numbers_of, recoloured
from worker.families.gan.data import TrainingImages, to_pictures


@pytest.fixture
def own(tmp_path: Path) -> TrainingImages:
    """A red disc and a blue square, as a dataset has them."""
    rows = []
    with zipfile.ZipFile(tmp_path / "logos.zip", "w") as archive:
        for name, shape, colour in (("disc", "ellipse", (220, 30, 40)), ("square", "rectangle", (30, 60, 220))):
            page = Image.new("RGB", (64, 64), "white")
            getattr(ImageDraw.Draw(page), shape)((8, 8, 40, 40), fill=colour)
            data = io.BytesIO()
            page.save(data, "PNG")
            archive.writestr(f"{name}.png", data.getvalue())
            rows.append(json.dumps({"file_name": f"{name}.png", "label": first_colour(page)}))
        archive.writestr("metadata.jsonl", "\n".join(rows))
    return logos(tmp_path / "logos.zip")


def everything(images: Recolourings) -> list[Image.Image]:
    return to_pictures(images.images(torch.arange(len(images))))


def test_each_is_labelled_by_the_colour_it_has_then(own: TrainingImages) -> None:
    images = recoloured(own, originals=3)
    found = [first_colour(image) for image in everything(images)]
    assert [LABELS[number] for number in images.classes.tolist()] == found
    assert {"red", "green", "blue"} <= set(found)


def test_own_colours_come_as_often_as_they_count(own: TrainingImages) -> None:
    images = recoloured(own, originals=3)
    assert len(images) == 2 * (3 - 1 + len(CHANNEL_ORDERS))
    unchanged = [image.tobytes() for image in to_pictures(own.images(torch.arange(2)))]
    everyone = [image.tobytes() for image in everything(images)]
    assert [everyone.count(image) for image in unchanged] == [3, 3]


def test_the_paper_stays_white_and_the_shape_what_it_is(own: TrainingImages) -> None:
    images = recoloured(own)
    ink = own.images(torch.arange(2)).amin(dim=1) < 1
    assert torch.equal(images.images(torch.arange(len(images))).amin(dim=1) < 1, ink[images.logos])


def test_labels_are_in_the_order_of_a_training_job() -> None:
    assert list(LABELS) == sorted(LABELS)
    assert numbers_of(["black", "yellow"]) == [0, len(LABELS) - 1]
