"""From a request to networks and settings; and models that a training cannot start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calotype.errors import JobFailed
from calotype.gan_description import DISCRIMINATOR, FILE, LIVE_GENERATOR
from calotype.specs.gan_train import GanTrainInput
from calotype.submission.gan_train import default_gamma, recipe
from worker.families.gan import losses, stored
from worker.families.gan.ema import half_life
from worker.families.gan.recipe import (
    fresh_networks,
    snapshot_interval,
    steps_of,
    train_settings,
    transferred_networks,
)

SMALL = {"channel_base": 256, "channel_max": 16, "layers": 4}


def spec(architecture: Any = "stylegan3-t", **changes: Any) -> GanTrainInput:
    """A request as submission completes it."""
    values: dict[str, Any] = {
        "dataset": "ds",
        "architecture": architecture,
        "resolution": 16,
        "kimg": 2.0,
        "batch_size": 8,
        "conditional": False,
        "seed": 7,
        "output_model": "mine",
        **(SMALL if architecture != "r3gan" else SMALL | {"layers": 1}),
    }
    asked = GanTrainInput(**(values | changes))
    whole = recipe(asked.architecture or architecture, asked.resolution or 16, asked)
    return GanTrainInput(**(values | changes | whole))


def test_stylegan3_is_trained_as_its_paper_says() -> None:
    settings = train_settings(spec(resolution=128, batch_size=32), transferred=False)
    assert not settings.relativistic
    for images in (0, 10**6):
        assert settings.generator_lr.at(images) == 0.0025
        assert settings.discriminator_lr.at(images) == 0.002
        assert settings.beta2.at(images) == 0.99
        assert settings.gamma.at(images) == 0.5
        assert settings.sigma.at(images) == 0.0
    assert settings.penalty_every == 16
    assert (settings.augment, settings.augment_p.at(0)) == ("ada", 0.0)
    assert settings.ema_half_life == half_life(32) == 10_000


def test_r3gan_moves_its_settings_over_the_ramp() -> None:
    settings = train_settings(spec("r3gan", r1_gamma=150.0, kimg=10.0), transferred=False)
    assert settings.relativistic
    assert settings.penalty_every == 1
    ends = {
        "generator_lr": (2e-4, 5e-5),
        "discriminator_lr": (2e-4, 5e-5),
        "beta2": (0.9, 0.99),
        "gamma": (150.0, 15.0),
        "augment_p": (0.0, 0.3),
    }
    for name, (start, end) in ends.items():
        ramp = getattr(settings, name)
        assert (ramp.at(0), ramp.at(2000), ramp.at(9000)) == pytest.approx((start, end, end)), name
        assert min(start, end) < ramp.at(1000) < max(start, end)


def test_what_is_asked_for_reaches_the_trainer() -> None:
    asked = spec(
        r1_gamma=3.0,
        r1_every=5,
        generator_lr=0.1,
        discriminator_lr=0.2,
        augment="fixed",
        augment_p=0.6,
        ramp_kimg=0.0,
        augmentations=("x_flip",),
        mixed_precision="bf16",
        ema_kimg=3.0,
    )
    settings = train_settings(asked, transferred=True)
    assert (settings.gamma.at(0), settings.penalty_every) == (3.0, 5)
    assert (settings.generator_lr.at(0), settings.discriminator_lr.at(0)) == (0.1, 0.2)
    assert (settings.augment, settings.augment_p.at(0)) == ("fixed", 0.6)
    assert (settings.transforms.x_flip, settings.transforms.scale) == (1.0, 0.0)
    assert (settings.mixed_precision, settings.ema_half_life, settings.transferred) == ("bf16", 3000.0, True)
    assert (settings.seed, settings.batch_size, settings.steps) == (7, 8, 250)


def test_flips_turns_and_hues_are_off_if_nobody_asks_for_them() -> None:
    transforms = train_settings(spec(), transferred=False).transforms
    for name in ("x_flip", "rotate90", "rotate", "luma_flip", "hue"):
        assert getattr(transforms, name) == 0.0
    assert transforms.scale == transforms.brightness == 1.0


def test_only_a_fresh_configuration_r_begins_blurred() -> None:
    asked = spec("stylegan3-r", resolution=64, kimg=1000.0)
    sigma = train_settings(asked, transferred=False).sigma
    assert (sigma.at(0), sigma.at(100_000), sigma.at(200_000)) == pytest.approx((2.5, 1.25, 0.0))
    assert train_settings(asked, transferred=True).sigma.at(0) == 0.0


@pytest.mark.parametrize(("kimg", "batch", "steps"), [(1.0, 32, 32), (0.001, 8, 1), (0.8, 8, 100), (2.5, 1000, 3)])
def test_a_training_shows_at_least_the_images_asked_for(kimg: float, batch: int, steps: int) -> None:
    assert steps_of(spec(kimg=kimg, batch_size=batch)) == steps


def test_there_are_eight_snapshots_if_nobody_says_otherwise() -> None:
    assert snapshot_interval(spec(kimg=0.8)) == 13
    assert snapshot_interval(spec(kimg=0.008)) == 1
    assert snapshot_interval(spec(snapshot_every=40)) == 40


@pytest.mark.parametrize("resolution", [16, 64, 128, 1024])
def test_the_default_penalty_is_that_of_the_losses_module(resolution: int) -> None:
    assert default_gamma("stylegan3-t", resolution) == losses.default_gamma(resolution)


def test_the_default_penalty_of_r3gan_is_its_papers_at_256() -> None:
    assert default_gamma("r3gan", 256) == 150
    assert default_gamma("r3gan", 64) == pytest.approx(2, abs=0.5)


def test_an_incomplete_spec_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match=r"not complete: submission fills in .*seed"):
        train_settings(spec(seed=None), transferred=False)


@pytest.mark.parametrize("architecture", ["stylegan3-t", "stylegan3-r", "r3gan"])
def test_networks_follow_the_seed_and_leave_torchs_random_numbers_alone(architecture: str) -> None:
    before = torch.get_rng_state()
    first, same, other = (fresh_networks(spec(architecture, seed=seed), 3) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert stored.architecture_of(first.generator) == architecture
    assert first.generator.config.num_classes == first.discriminator.config.num_classes == 3
    for network in ("generator", "discriminator"):
        states = [getattr(one, network).state_dict() for one in (first, same, other)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_configuration_r_has_a_discriminator_of_half_its_width() -> None:
    networks = fresh_networks(spec("stylegan3-r"), 0)
    assert (networks.discriminator.config.channel_base, networks.discriminator.config.channel_max) == (128, 8)


def test_settings_of_which_nothing_can_be_built_are_bad_input() -> None:
    with pytest.raises(JobFailed, match="No r3gan can be built") as caught:
        fresh_networks(spec("r3gan", channel_max=10), 0)
    assert caught.value.code == "bad_input"
    assert "groups of 16" in caught.value.detail


# Starting from a model


def version(folder: Path, asked: GanTrainInput, labels: tuple[str, ...] = (), *, whole: bool = True) -> Path:
    networks = fresh_networks(asked, len(labels))
    live = fresh_networks(asked.model_copy(update={"seed": 99}), len(labels))
    stored.save_version(
        folder,
        networks.generator,
        labels=labels or None,
        provenance={},
        live_generator=live.generator if whole else None,
        discriminator=live.discriminator if whole else None,
    )
    return folder


def test_a_version_brings_its_average_its_generator_and_its_discriminator(tmp_path: Path) -> None:
    asked = spec(seed=1)
    folder = version(tmp_path / "m", asked, ("a", "b"))
    found = transferred_networks(folder, "m@1", asked, ("a", "b"))
    assert found.averaged is not None and found.remarks == ()
    expected = fresh_networks(asked, 2).generator, fresh_networks(asked.model_copy(update={"seed": 99}), 2)
    for got, want in (
        (found.averaged, expected[0]),
        (found.generator, expected[1].generator),
        (found.discriminator, expected[1].discriminator),
    ):
        state = want.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in got.state_dict().items())


def test_a_discriminator_that_is_not_described_is_one_that_matches_the_generator(tmp_path: Path) -> None:
    # As an imported official file has it.
    asked = spec("stylegan3-r", seed=1)
    folder = version(tmp_path / "m", asked)
    content = json.loads((folder / FILE).read_text())
    content["discriminator"] = None
    (folder / FILE).write_text(json.dumps(content))
    found = transferred_networks(folder, "m@1", asked, ())
    state = fresh_networks(asked.model_copy(update={"seed": 99}), 0).discriminator.state_dict()
    assert found.remarks == ()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.discriminator.state_dict().items())


@pytest.mark.parametrize("architecture", ["stylegan3-r", "r3gan"])
def test_a_version_with_its_average_alone_starts_from_that(architecture: str, tmp_path: Path) -> None:
    asked = spec(architecture)
    folder = version(tmp_path / "m", asked, whole=False)
    assert not (folder / LIVE_GENERATOR).exists() and not (folder / DISCRIMINATOR).exists()
    found = transferred_networks(folder, "m@1", asked, ())
    assert found.remarks == ("m@1 brings no discriminator: it begins with random weights",)
    assert found.averaged is not None and found.generator is not found.averaged
    state = found.averaged.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.generator.state_dict().items())
    fresh = fresh_networks(asked, 0).discriminator
    assert {name: t.shape for name, t in found.discriminator.state_dict().items()} == {
        name: t.shape for name, t in fresh.state_dict().items()
    }


@pytest.mark.parametrize(
    ("changes", "labels", "words"),
    [
        ({"architecture": "r3gan", "layers": 1}, ("a", "b"), "m@1 is a stylegan3-t, not a r3gan"),
        ({"resolution": 32}, ("a", "b"), "makes images of 16 pixels, not 32"),
        ({}, (), "knows the labels 'a', 'b', and the training is on no labels"),
        ({}, ("b", "a"), "they must be the same"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    changes: dict[str, Any], labels: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    folder = version(tmp_path / "m", spec(), ("a", "b"))
    with pytest.raises(JobFailed, match=words) as caught:
        transferred_networks(folder, "m@1", spec(**changes), labels)
    assert caught.value.code == "bad_input"


def test_weights_that_do_not_fit_their_description_are_refused(tmp_path: Path) -> None:
    folder = version(tmp_path / "m", spec())
    content = json.loads((folder / FILE).read_text())
    content["discriminator"]["channel_max"] = 4
    (folder / FILE).write_text(json.dumps(content))
    with pytest.raises(JobFailed, match=r"m@1 cannot be trained on: .*discriminator") as caught:
        transferred_networks(folder, "m@1", spec(), ())
    assert caught.value.code == "bad_input"
