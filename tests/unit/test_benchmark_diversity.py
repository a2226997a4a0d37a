"""How varied a set is: agreement with the reference implementations, and what each number means at its ends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from worker.benchmark.diversity import (
    DUPLICATE_SHARE,
    PRECISION_NEIGHBOURS,
    duplicate_radius,
    duplicate_rate,
    mean_cosine,
    prdc,
    spread,
    vendi_score,
)
from worker.benchmark.quality import Features

SETS = ("fake", "half_collapsed", "collapsed4")


def normal(count: int, dimensions: int = 8, seed: int = 0) -> Features:
    return np.random.RandomState(seed).normal(size=(count, dimensions))


@pytest.mark.parametrize("name", SETS)
def test_cosine_and_vendi_score_agree_with_the_reference(
    name: str, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    mean = golden["real"].mean(axis=0)
    assert mean_cosine(golden[name], mean) == pytest.approx(references[name]["mean_centred_cosine"], rel=1e-9)
    assert vendi_score(golden[name], mean) == pytest.approx(references[name]["vendi_centred_on_real_mean"], rel=1e-9)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("neighbours", [3, 5])
def test_precision_recall_density_and_coverage_agree_with_prdc(
    name: str, neighbours: int, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    found = prdc(golden[name], golden["real"], neighbours=neighbours)
    assert found._asdict() == pytest.approx(references[name][f"prdc_k{neighbours}"], rel=1e-9)


@pytest.mark.parametrize("name", SETS)
def test_precision_and_recall_agree_with_torch_fidelity(
    name: str, golden: dict[str, Features], references: dict[str, Any]
) -> None:
    found = prdc(golden[name], golden["real"], neighbours=PRECISION_NEIGHBOURS)
    reference = references[name]["prc_torch_fidelity"]
    assert (found.precision, found.recall) == pytest.approx((reference["precision"], reference["recall"]), rel=1e-6)


def test_the_vendi_score_counts_orthogonal_images_and_not_their_copies() -> None:
    different = np.eye(6)
    assert vendi_score(different, np.zeros(6)) == pytest.approx(6.0)
    assert vendi_score(np.repeat(different[:3], 4, axis=0), np.zeros(6)) == pytest.approx(3.0)


def test_the_vendi_score_is_the_same_from_either_side_of_the_matrix() -> None:
    """Fewer samples than values, and more, take different routes."""
    few = normal(10, 30)
    wide = np.hstack([few, np.zeros((10, 20))])
    many = np.vstack([few, few, few, few])
    assert vendi_score(many, np.zeros(30)) == pytest.approx(vendi_score(wide, np.zeros(50)), rel=1e-9)


def test_one_image_over_and_over_has_no_variety() -> None:
    copies = np.repeat(normal(1), 20, axis=0)
    mean = normal(50, seed=1).mean(axis=0)
    assert vendi_score(copies, mean) == pytest.approx(1.0)
    assert mean_cosine(copies, mean) == pytest.approx(1.0)
    assert spread(copies, normal(50)) == pytest.approx(0.0, abs=1e-12)


def test_images_at_the_mean_itself_have_no_direction() -> None:
    same = np.repeat(normal(1) * 1e3, 7, axis=0)
    assert vendi_score(same, same.mean(axis=0)) == 1.0
    assert mean_cosine(same, same.mean(axis=0)) == 0.0


def test_spread_compares_variances() -> None:
    real = normal(40)
    assert spread(3.0 * real + 5.0, real) == pytest.approx(9.0)
    assert spread(normal(4, 2), np.ones((4, 2))) == 1.0


def test_copies_are_duplicates_and_neighbours_are_not() -> None:
    real = normal(200)
    radius = duplicate_radius(real)
    nearest = [np.sort(np.linalg.norm(real - row, axis=1))[1] for row in real]
    assert radius == pytest.approx(DUPLICATE_SHARE * float(np.median(nearest)))
    assert duplicate_rate(real, radius) < 0.05
    near = real[:50] + 0.5 * radius / np.sqrt(8.0)
    assert duplicate_rate(np.vstack([real, near]), radius) == pytest.approx(100 / 250, abs=0.05)


def test_equal_images_are_duplicates_however_large_their_features() -> None:
    twice = np.repeat(1e4 * normal(30, 64), 2, axis=0)
    assert duplicate_radius(twice) == pytest.approx(0.0, abs=1.0)
    assert duplicate_rate(twice, 0.0) == 1.0
    assert duplicate_rate(1e4 * normal(60, 64), 0.0) == 0.0


def test_duplicates_are_found_across_the_bands_of_a_large_set() -> None:
    rest = normal(1500)
    assert duplicate_rate(np.vstack([rest[:1], rest]), 1e-6) == pytest.approx(2 / 1501)


def test_distances_give_way_between_bands() -> None:
    class Over(Exception):
        pass

    def give_up() -> None:
        raise Over

    with pytest.raises(Over):
        prdc(normal(20), normal(20), pulse=give_up)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 6 samples, has 5"):
        prdc(normal(5), normal(20))
    with pytest.raises(ValueError, match="two backbones"):
        prdc(normal(20, 8), normal(20, 9))
    with pytest.raises(ValueError, match="needs 2 samples"):
        mean_cosine(normal(1), np.zeros(8))
    broken = normal(20)
    broken[3, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        vendi_score(broken, np.zeros(8))
