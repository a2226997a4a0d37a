"""The mode-collapse watch: what it fires on, what leaves it silent, and how long it waits."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from safetensors.numpy import load_file

import starter
from starter.recipe.data import load_images
from worker.benchmark.quality import Features, features
from worker.families.gan.collapse import Action, Check, CollapseSettings, CollapseWatch, Sign, measure
from worker.families.gan.collapse_plot import collapse_chart

#: Images of a set, and real logos to draw them from: a feature takes 30 ms or more.
SIZE = 120
POOL = 180
SEEDS = range(5)


class Logos(NamedTuple):
    """Features of POOL real logos, and of near-copies of four others: 60 of the first, 30 of the rest."""

    images: list[Image.Image]
    real: Features
    copies: list[Features]


@pytest.fixture(scope="module")
def logos() -> Logos:
    random = np.random.RandomState(0)
    every = load_images(starter.heldout_dataset())
    images = [every[row] for row in random.choice(len(every), POOL + 4, replace=False)]
    copied = [[near_copy(image, random) for _ in range(n)] for image, n in zip(images, (60, 30, 30, 30), strict=False)]
    return Logos(images[4:], features(images[4:]), [features(copies) for copies in copied])


def near_copy(image: Image.Image, random: np.random.RandomState) -> Image.Image:
    """Shifted by up to two pixels, a little darker, with a little noise."""
    right, down = random.randint(-2, 3, 2)
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, right, 0, 1, down), fillcolor="white")
    pixels = np.asarray(ImageEnhance.Brightness(moved).enhance(random.uniform(0.95, 1.0)), dtype=np.float64)
    return Image.fromarray((pixels + random.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))


def look(generated: Features, real: Features) -> Check:
    return CollapseWatch(CollapseSettings()).check(2000, generated, real)


def split(logos: Logos, seed: int, size: int = SIZE) -> tuple[Features, Features]:
    """A real sample of that size, and the other logos."""
    order = np.random.RandomState(seed).permutation(POOL)
    return logos.real[order[:size]], logos.real[order[size:]]


@pytest.mark.parametrize("seed", SEEDS)
def test_other_logos_leave_the_watch_silent(logos: Logos, seed: int) -> None:
    check = look(*split(logos, seed, POOL // 2))
    assert (check.signs, check.suspicious, check.strikes) == ((), False, 0)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_half_collapsed_set_is_suspicious(logos: Logos, seed: int) -> None:
    real, others = split(logos, seed)
    check = look(np.concatenate([others, logos.copies[0]]), real)
    assert {Sign.DUPLICATES, Sign.COSINE, Sign.VENDI} <= set(check.signs)
    assert check.suspicious
    assert check.measured.duplicates == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_set_of_four_modes_is_suspicious(logos: Logos, seed: int) -> None:
    real, _ = split(logos, seed)
    random = np.random.RandomState(seed)
    four = np.concatenate([copies[random.permutation(len(copies))[: SIZE // 4]] for copies in logos.copies])
    check = look(four, real)
    assert {Sign.DUPLICATES, Sign.COSINE, Sign.VENDI, Sign.RECALL} <= set(check.signs)
    assert check.suspicious
    assert check.measured.vendi == pytest.approx(4.5, abs=1.0)


def test_near_copies_of_one_logo_have_neither_distance_nor_direction(logos: Logos) -> None:
    check = look(logos.copies[0], logos.real[: len(logos.copies[0])])
    assert set(check.signs) == set(Sign)


def test_ugly_but_varied_images_leave_the_watch_silent(logos: Logos) -> None:
    """Blur moves all features one way: cosine, Vendi score and recall take it for a collapse, distances do not."""
    blurred = features([image.filter(ImageFilter.GaussianBlur(3)) for image in logos.images[:20]])
    check = look(blurred, logos.real[20:40])
    assert {Sign.COSINE, Sign.VENDI} <= set(check.signs)
    assert not check.suspicious


@pytest.mark.parametrize("seed", SEEDS)
def test_it_judges_the_golden_features_of_another_space_alike(seed: int) -> None:
    golden = load_file(Path(__file__).parents[1] / "golden" / "metrics.features.safetensors")
    random = np.random.RandomState(seed)

    def sample(name: str) -> Features:
        found: Features = golden[name].astype(np.float64)
        return found[random.permutation(len(found))[:400]]

    real = sample("real")
    found = {name: look(sample(name), real).suspicious for name in ("fake", "half_collapsed", "collapsed4")}
    assert found == {"fake": False, "half_collapsed": True, "collapsed4": True}


# --- Patience: on points in a plane that are easily far apart or all alike. ---


def cloud(seed: int, count: int = 40) -> Features:
    return np.random.RandomState(seed).normal(size=(count, 16))


REAL = cloud(0)
HEALTHY = cloud(1)
COLLAPSED = 0.01 * cloud(2) + 3.0


def watched(settings: CollapseSettings, sets: list[Features]) -> list[Check]:
    watch = CollapseWatch(settings)
    return [watch.check(100 * number, generated, REAL) for number, generated in enumerate(sets, start=1)]


@pytest.mark.parametrize("action", Action)
def test_it_acts_after_patience_checks_in_a_row_and_again_while_nothing_helps(action: Action) -> None:
    checks = watched(CollapseSettings(action=action, patience=2), [HEALTHY, *[COLLAPSED] * 5])
    assert [check.action for check in checks] == [None, None, action, None, action, None]
    assert [check.strikes for check in checks] == [0, 1, 2, 3, 4, 5]


def test_one_healthy_check_starts_the_count_again() -> None:
    checks = watched(CollapseSettings(patience=2), [HEALTHY, COLLAPSED, HEALTHY, COLLAPSED, HEALTHY])
    assert [check.action for check in checks] == [None] * 5


def test_a_young_generator_is_given_time() -> None:
    """Noise at the start is all alike; a generator that never gets beyond it is reported after the warm-up."""
    settings = CollapseSettings(patience=1, warmup_steps=300)
    checks = watched(settings, [COLLAPSED] * 3)
    assert [check.suspicious for check in checks] == [True] * 3
    assert [check.action for check in checks] == [None, None, Action.WARN]


def test_a_generator_that_was_varied_once_gets_no_more_time() -> None:
    checks = watched(CollapseSettings(patience=1, warmup_steps=10_000), [COLLAPSED, HEALTHY, COLLAPSED])
    assert [check.action for check in checks] == [None, None, Action.WARN]


def test_a_resumed_watch_goes_on_where_it_was() -> None:
    settings = CollapseSettings(action=Action.STOP, patience=3)
    sets = [HEALTHY, COLLAPSED, COLLAPSED, COLLAPSED, COLLAPSED]
    undisturbed = CollapseWatch(settings)
    first, resumed = CollapseWatch(settings), CollapseWatch(settings)
    for step, generated in enumerate(sets[:3], start=1):
        undisturbed.check(step, generated, REAL)
        first.check(step, generated, REAL)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step, generated in enumerate(sets[3:], start=4):
        assert resumed.check(step, generated, REAL).as_dict() == undisturbed.check(step, generated, REAL).as_dict()
    assert resumed.result() == undisturbed.result()
    assert resumed.result()["acted_at"] == [4]


def test_it_looks_every_so_many_steps() -> None:
    watch = CollapseWatch(CollapseSettings(every_steps=50))
    assert [step for step in range(1, 160) if watch.is_due(step)] == [50, 100, 150]


def test_the_reason_names_the_step_and_the_numbers_beside_the_real_ones() -> None:
    reason = watched(CollapseSettings(patience=1), [HEALTHY, COLLAPSED])[-1].summary
    assert reason.startswith("At step 200, for 1 checks in a row, the generator looks collapsed")
    assert "100% of 40 images have a near-copy among them (0%)" in reason


def test_a_check_survives_json() -> None:
    (check,) = watched(CollapseSettings(), [HEALTHY])
    again = Check.from_dict(json.loads(json.dumps(check.as_dict())))
    assert again.as_dict() == check.as_dict()


def test_a_real_set_of_copies_does_not_make_copies_suspicious_by_itself() -> None:
    """What the data itself is like is no collapse."""
    doubled = np.repeat(cloud(3, 20), 2, axis=0)
    assert not look(np.repeat(cloud(4, 20), 2, axis=0), doubled).suspicious


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="one size, not 30 generated with 40 real"):
        measure(HEALTHY[:30], REAL)
    with pytest.raises(ValueError, match="needs 16 images a side, has 10"):
        measure(HEALTHY[:10], REAL[:10])
    with pytest.raises(ValueError, match="not finite"):
        measure(np.full_like(REAL, np.nan), REAL)
    for wrong in ({"every_steps": 0}, {"patience": 0}, {"warmup_steps": -1}):
        with pytest.raises(ValueError, match="at least"):
            CollapseSettings(**wrong)


def alarms(chart: bytes) -> int:
    """How many pixels have the colour in which the watch speaks; the legend has some."""
    with Image.open(io.BytesIO(chart)) as image:
        return int((np.asarray(image.convert("RGB")) == (213, 94, 0)).all(axis=2).sum())


def test_the_chart_shows_more_when_the_watch_acted() -> None:
    settings = CollapseSettings(patience=2)
    quiet = [check.as_dict() for check in watched(settings, [HEALTHY, HEALTHY, HEALTHY])]
    loud = [check.as_dict() for check in watched(settings, [HEALTHY, COLLAPSED, COLLAPSED])]
    assert alarms(collapse_chart(loud)) > 2 * alarms(collapse_chart(quiet)) > 0
    with pytest.raises(ValueError, match="no curve"):
        collapse_chart([])
