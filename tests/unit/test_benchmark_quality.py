"""Distances between image sets: agreement with the reference implementations, and the yardstick itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchmetrics.image.fid import FrechetInceptionDistance

from worker.benchmark import backbone as backbones
from worker.benchmark.quality import Features, fd_caveats, features, frechet_distance, kid

SETS = ("fake", "half_collapsed", "collapsed4")


@pytest.fixture(scope="module")
def network() -> backbones.Backbone:
    return backbones.load_backbone()


def drawing(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    random = np.random.RandomState(seed)
    image = Image.new("RGB", size, "white")
    left, top = random.randint(0, 30, 2)
    ImageDraw.Draw(image).ellipse((left, top, left + 30, top + 30), fill=tuple(random.randint(0, 255, 3)))
    return image


@pytest.mark.parametrize("name", SETS)
def test_the_frechet_distance_agrees_with_torch_fidelity_and_scipy(
    name: str, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    found = frechet_distance(golden[name], golden["real"])
    assert found == pytest.approx(references[name]["fid_torch_fidelity"], rel=1e-6)
    assert found == pytest.approx(references[name]["fid_scipy_sqrtm"], rel=1e-10)


@pytest.mark.parametrize(("name", "size"), [("fake", 1000), ("half_collapsed", 500), ("collapsed4", 500)])
def test_kid_draws_the_same_subsets_as_torch_fidelity(
    name: str, size: int, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    reference = references[name]["kid_torch_fidelity"]["kernel_inception_distance_mean"]
    assert kid(golden[name], golden["real"], subset_size=size).mean == pytest.approx(reference, rel=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_kid_and_its_interval_hold_the_estimate_from_all_samples(
    name: str, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    full, found = references[name]["kid_unbiased_full"], kid(golden[name], golden["real"])
    assert found.mean == pytest.approx(full, rel=0.01)
    assert found.ci_low < full < found.ci_high


def test_the_interval_of_kid_covers_zero_for_two_halves_and_not_for_different_sets(
    golden: dict[str, Features],
) -> None:
    alike = kid(golden["real"][:600], golden["real"][600:1200])
    different = kid(golden["half_collapsed"], golden["real"])
    assert alike.ci_low < 0 < alike.ci_high
    assert 0 < different.ci_low < different.mean < different.ci_high


def test_the_interval_of_kid_is_as_wide_as_repeated_draws_scatter() -> None:
    random = np.random.RandomState(0)

    def draw() -> tuple[Features, Features]:
        return random.normal(0.4, 1.0, (80, 8)), random.normal(0.0, 1.0, (80, 8))

    results = [kid(*draw(), subsets=1) for _ in range(200)]
    scatter = np.std([result.mean for result in results])
    error = np.mean([(result.ci_high - result.ci_low) / (2 * 1.96) for result in results])
    assert error == pytest.approx(scatter, rel=0.2)


def test_the_frechet_distance_is_exact_where_covariances_are_singular() -> None:
    random = np.random.RandomState(1)
    few = random.normal(size=(10, 64))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(few, few + 2.0) == pytest.approx(64 * 4.0, rel=1e-9)


def test_two_samples_a_side_are_the_least() -> None:
    one = np.zeros((1, 4))
    for distance in (frechet_distance, kid):
        measure: Callable[..., object] = distance
        with pytest.raises(ValueError, match="needs 2 samples"):
            measure(one, np.zeros((5, 4)))


def test_features_of_two_backbones_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="two backbones"):
        frechet_distance(np.zeros((5, 4)), np.zeros((5, 3)))


def test_too_few_samples_are_said_to_be_too_few() -> None:
    assert fd_caveats(5000, 5000, 1280) == []
    warning = " ".join(fd_caveats(100, 900, 1280))
    assert "singular" in warning
    assert "N = 100" in warning
    assert "biased upwards" in warning


def test_features_do_not_depend_on_the_batch_size(network: backbones.Backbone) -> None:
    images = [drawing(seed) for seed in range(7)]
    alone = features(images, network, batch_size=1)
    together = features(images, network, batch_size=5)
    assert alone.shape == (7, 1280)
    assert alone.dtype == np.float64
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_images_of_different_sizes_keep_their_places(network: backbones.Backbone) -> None:
    small, large = drawing(1, (32, 32)), drawing(2, (48, 40))
    mixed = features([small, large, small], network)
    np.testing.assert_allclose(mixed[0], mixed[2], rtol=1e-5)
    np.testing.assert_allclose(mixed[1], features([large], network)[0], rtol=1e-4, atol=1e-5)


def test_transparent_parts_count_as_white(network: backbones.Backbone) -> None:
    opaque = drawing(3)
    ink = (np.asarray(opaque) != 255).any(axis=2)
    clear = opaque.copy()
    clear.putalpha(Image.fromarray(np.where(ink, 255, 0).astype(np.uint8)))
    np.testing.assert_allclose(features([clear], network), features([opaque], network), rtol=1e-5)


def test_the_backbone_stays_a_yardstick_in_training_mode(network: backbones.Backbone) -> None:
    assert not network.train().training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_backbone_is_a_feature_module_for_torchmetrics(network: backbones.Backbone) -> None:
    metric = FrechetInceptionDistance(network, antialias=False)
    real = [drawing(seed) for seed in range(6)]
    made = [drawing(seed) for seed in range(6, 12)]
    for images, are_real in ((real, True), (made, False)):
        stacked = np.stack([np.asarray(image) for image in images])
        metric.update(torch.from_numpy(stacked).permute(0, 3, 1, 2), real=are_real)
    ours = frechet_distance(features(made, network), features(real, network))
    assert float(metric.compute()) == pytest.approx(ours, rel=1e-3)


def test_other_weights_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "weights.pth"
    other.write_bytes(b"something else")
    with pytest.raises(backbones.BackboneError, match=r"weights\.pth has sha256"):
        backbones.EfficientNetLite0(other)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(backbones.BackboneError, match="inception"):
        backbones.load_backbone("inception")


def test_no_image_has_no_features(network: backbones.Backbone) -> None:
    with pytest.raises(ValueError, match="no image"):
        features([], network)
