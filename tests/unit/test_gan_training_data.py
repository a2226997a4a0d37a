"""Images as a GAN is trained on them, and datasets that no GAN can be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.datasets import DatasetImage
from calotype.errors import JobFailed
from worker.families.gan.data import TrainingImages, build, check, to_pictures, to_square, to_unit


class Archive:
    """Images in memory."""

    def __init__(self, images: list[Image.Image], labels: list[str | None] | None = None) -> None:
        self._images = {f"{number}.png": image for number, image in enumerate(images)}
        self.items = [
            DatasetImage(
                file_name=name,
                text=None,
                label=None if labels is None else labels[number],
                width=image.width,
                height=image.height,
                sha256="",
            )
            for number, (name, image) in enumerate(self._images.items())
        ]
        self.opened: list[str] = []

    def open_image(self, file_name: str) -> Image.Image:
        self.opened.append(file_name)
        return self._images[file_name]


def picture(width: int = 16, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def built(archive: Archive, path: Path, **changes: Any) -> TrainingImages:
    options: dict[str, Any] = {"resolution": 16, "resize": None, "conditional": False, "batch_size": 2}
    return build(archive, path / "images.u8", **(options | changes))


def test_pixels_and_classes_are_those_of_the_archive(tmp_path: Path) -> None:
    pictures = [picture(seed=number) for number in range(4)]
    done: list[tuple[int, int]] = []
    images = built(
        Archive(pictures, ["b", "a", "b", "c"]),
        tmp_path,
        conditional=True,
        on_progress=lambda number, total: done.append((number, total)),
    )
    assert (len(images), images.resolution, images.labels) == (4, 16, ("a", "b", "c"))
    assert images.classes.tolist() == [1, 0, 1, 2]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for number, one in enumerate(pictures):
        assert np.array_equal(images.pixels[number].numpy().transpose(1, 2, 0), np.asarray(one))
    labels = images.one_hot(images.classes[:2])
    assert labels is not None and labels.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_without_conditions_labels_are_left_out(tmp_path: Path) -> None:
    images = built(Archive([picture(), picture()], ["a", None]), tmp_path)
    assert images.labels == ()
    assert images.one_hot(images.classes) is None


def test_a_picture_that_goes_through_the_networks_range_comes_back_as_it_was() -> None:
    everything = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    unit = to_unit(everything)
    assert (float(unit.min()), float(unit.max())) == (-1.0, 1.0)
    (back,) = to_pictures(unit)
    assert np.array_equal(np.asarray(back)[:, :, 0], everything[0, 0].numpy())
    (clipped,) = to_pictures(torch.full((1, 3, 1, 1), 1.7))
    assert clipped.getpixel((0, 0)) == (255, 255, 255)


def marked() -> Image.Image:
    """32 × 16: white with a black square in the middle."""
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (8, 0, 24, 16))
    return image


@pytest.mark.parametrize(("rule", "black"), [("pad", 64), ("crop", 256), ("stretch", 128)])
def test_each_rule_makes_a_square_of_its_own_kind(rule: Any, black: int) -> None:
    square = to_square(marked(), 16, rule)
    assert square.size == (16, 16)
    dark = int((np.asarray(square)[:, :, 0] < 128).sum())
    assert abs(dark - black) <= 4


def test_squares_of_one_size_need_no_rule(tmp_path: Path) -> None:
    images = built(Archive([picture(64, 64), picture(64, 64, 1)]), tmp_path)
    assert images.pixels.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([(64, 64), (32, 32)], "2 sizes: 32×32, 64×64"),
        ([(64, 32), (64, 32)], "no square: 64×32"),
        ([(8, 8), (9, 9), (10, 10), (11, 11), (12, 12)], "5 sizes: 8×8, 9×9, 10×10 and 2 more"),
    ],
)
def test_mixed_sizes_without_a_rule_are_refused_before_any_is_read(
    sizes: list[tuple[int, int]], words: str, tmp_path: Path
) -> None:
    archive = Archive([picture(*size) for size in sizes])
    with pytest.raises(JobFailed, match=words) as caught:
        built(archive, tmp_path)
    assert "pad, crop or stretch" in caught.value.detail
    assert (caught.value.code, caught.value.retryable) == ("bad_input", False)
    assert archive.opened == []
    assert len(built(archive, tmp_path, resize="pad")) == len(sizes)


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(JobFailed, match="has 2 images, fewer than one batch of 3"):
        check(Archive([picture(), picture()]).items, resize=None, conditional=False, batch_size=3)


def test_images_without_a_label_are_refused_for_a_conditional_model() -> None:
    items = Archive([picture(), picture(), picture()], ["a", None, None]).items
    check(items, resize=None, conditional=False, batch_size=2)
    with pytest.raises(JobFailed, match=r"2 of 3 have none, the first is 1\.png"):
        check(items, resize=None, conditional=True, batch_size=2)


def test_classes_are_in_the_order_of_a_model_that_has_the_same(tmp_path: Path) -> None:
    own = [str(number) for number in range(11)]
    pictures = [picture(seed=number) for number in range(11)]
    images = built(Archive(pictures, list(own)), tmp_path, conditional=True, order=own)
    assert (images.labels, images.classes.tolist()) == (tuple(own), list(range(11)))
    other = built(Archive(pictures, list(own)), tmp_path, conditional=True, order=["a"])
    assert other.labels[:3] == ("0", "1", "10")
