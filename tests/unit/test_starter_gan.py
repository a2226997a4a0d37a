"""The shipped GAN."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import starter
from calotype.gan_description import registry_parameters
from starter.colours import first_colour
from worker.families.gan.sampling import Sampler, make_sampler, to_images
from worker.families.gan.stored import build_discriminator, load_generator, load_weights, read_description


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return make_sampler(load_generator(starter.gan_dir(), torch.device("cpu")).generator)


def draw(sampler: Sampler, labels: list[str]) -> list[np.ndarray]:
    classes = [starter.GAN_LABELS.index(label) for label in labels]
    images = to_images(sampler.images(sampler.points(range(len(labels)), classes, 1.0)))
    return [np.asarray(image) for image in images if image is not None]


def test_the_registry_is_told_what_its_description_says() -> None:
    assert dict(starter.GAN.parameters) == registry_parameters(read_description(starter.gan_dir()))
    assert read_description(starter.gan_dir()).architecture == "r3gan"


def test_training_can_go_on_from_it() -> None:
    discriminator = build_discriminator(read_description(starter.gan_dir()))
    assert discriminator is not None
    load_weights(discriminator, starter.gan_dir() / "discriminator.safetensors")


def test_most_images_have_the_colour_that_was_asked_for(sampler: Sampler) -> None:
    from PIL import Image

    labels = list(starter.GAN_LABELS) * 10
    found = [first_colour(Image.fromarray(image)) for image in draw(sampler, labels)]
    hits = [one == label for one, label in zip(found, labels, strict=True)]
    assert sum(hits) > 0.75 * len(hits)


def test_its_images_are_drawings_on_white_paper_and_no_two_are_alike(sampler: Sampler) -> None:
    images = draw(sampler, ["blue"] * 24)
    assert all(image.shape == (64, 64, 3) for image in images)
    assert np.mean([np.median(image[:2]) for image in images]) > 250
    assert all(0.02 < np.mean(image.min(axis=2) < 200) < 0.9 for image in images)
    assert len({image.tobytes() for image in images}) == len(images)


def test_its_description_names_no_place_on_a_machine() -> None:
    text = (starter.gan_dir() / "model.json").read_text(encoding="utf-8")
    assert not [word for word in text.split('"') if word.startswith("/")]
