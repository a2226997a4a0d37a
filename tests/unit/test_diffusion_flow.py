"""Flow matching against formulas written down a second time, and against diffusers' own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worker.families.diffusion import flow


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    source = generator(1)
    shape = (16, 4, 8, 8)
    return {
        "velocity": torch.randn(shape, generator=source),
        "clean": torch.randn(shape, generator=source),
        "noise": torch.randn(shape, generator=source),
        "sigmas": torch.rand(16, generator=source).clamp_min(0.01),
    }


def test_noise_joins_the_clean_latent_and_pure_noise_along_a_straight_line(batch: dict[str, Tensor]) -> None:
    noisy = flow.add_noise(batch["clean"], batch["noise"], batch["sigmas"])
    for sample in range(16):
        level = float(batch["sigmas"][sample])
        expected = (1 - level) * batch["clean"][sample].numpy() + level * batch["noise"][sample].numpy()
        np.testing.assert_allclose(noisy[sample].numpy(), expected, rtol=1e-6, atol=1e-6)


def test_the_true_velocity_has_no_loss(batch: dict[str, Tensor]) -> None:
    velocity = batch["noise"] - batch["clean"]
    assert flow.flow_loss(velocity, batch["clean"], batch["noise"], batch["sigmas"]).abs().max() == 0


def test_velocity_loss_is_the_mean_square_error_of_the_velocity(batch: dict[str, Tensor]) -> None:
    loss = flow.flow_loss(**batch)
    target = batch["noise"].numpy() - batch["clean"].numpy()
    expected = ((batch["velocity"].numpy() - target) ** 2).reshape(16, -1).mean(axis=1)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-6)


def test_the_compatible_loss_is_what_the_diffusers_script_computes(batch: dict[str, Tensor]) -> None:
    from diffusers.training_utils import compute_loss_weighting_for_sd3

    sigmas = batch["sigmas"].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * batch["clean"] + sigmas * batch["noise"]
    prediction = batch["velocity"] * (-sigmas) + noisy
    for scheme, weighting in (("logit_normal", "none"), ("sigma_sqrt", "sigma_sqrt"), ("cosmap", "cosmap")):
        weight = compute_loss_weighting_for_sd3(scheme, sigmas)
        expected = (weight.float() * (prediction - batch["clean"]) ** 2).reshape(16, -1).mean(1)
        loss = flow.flow_loss(**batch, loss="diffusers_compat", weighting=weighting)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


def test_the_compatible_loss_is_sigma_squared_times_the_velocity_loss(batch: dict[str, Tensor]) -> None:
    compatible = flow.flow_loss(**batch, loss="diffusers_compat")
    torch.testing.assert_close(compatible, batch["sigmas"] ** 2 * flow.flow_loss(**batch), rtol=1e-5, atol=1e-6)


def test_weights_follow_their_formulas() -> None:
    sigmas = torch.tensor([0.1, 0.5, 1.0])
    assert flow.loss_weights(sigmas, "none").tolist() == [1, 1, 1]
    assert flow.loss_weights(sigmas, "sigma_sqrt").tolist() == pytest.approx([100, 4, 1])
    cosmap = [2 / (math.pi * (1 - 2 * s + 2 * s * s)) for s in (0.1, 0.5, 1.0)]
    assert flow.loss_weights(sigmas, "cosmap").tolist() == pytest.approx(cosmap)
    with pytest.raises(ValueError, match="sigma_sqrt"):
        flow.loss_weights(sigmas, "min_snr")  # type: ignore[arg-type]


def test_a_positive_logit_mean_means_more_noise() -> None:
    medians = [
        float(flow.sample_sigmas(20_000, generator(), logit_mean=mean, logit_std=0.5).median())
        for mean in (-1.0, 0.0, 1.0)
    ]
    assert medians == pytest.approx([1 / (1 + math.e), 0.5, 1 / (1 + 1 / math.e)], abs=0.01)


def test_mode_sampling_agrees_with_diffusers() -> None:
    from diffusers.training_utils import compute_density_for_timestep_sampling

    expected = compute_density_for_timestep_sampling("mode", 1000, mode_scale=1.29, generator=generator(5))
    sigmas = flow.sample_sigmas(1000, generator(5), sampling="mode")
    torch.testing.assert_close(sigmas, expected.clamp(flow.MIN_SIGMA, 1.0))


def test_logit_normal_sampling_agrees_with_diffusers_but_for_the_direction() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import compute_density_for_timestep_sampling

    density = compute_density_for_timestep_sampling(
        "logit_normal", 5000, logit_mean=1.0, logit_std=1.0, generator=generator(5)
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    theirs = scheduler.sigmas[(density * 1000).long()]
    ours = flow.sample_sigmas(5000, generator(5), logit_mean=1.0)
    torch.testing.assert_close(ours, 1 - theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_the_shift_is_the_schedulers(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    unshifted = torch.arange(1000, 0, -1) / 1000
    torch.testing.assert_close(flow.shift_sigmas(unshifted, shift), scheduler.sigmas)
    torch.testing.assert_close(flow.timesteps(flow.shift_sigmas(unshifted, shift)), scheduler.timesteps)


@pytest.mark.parametrize("sampling", ["logit_normal", "uniform", "mode"])
def test_levels_are_fp32_and_within_the_schedulers_range(sampling: flow.TimestepSampling) -> None:
    sigmas = flow.sample_sigmas(50_000, generator(), sampling=sampling, logit_std=4.0)
    assert sigmas.dtype == torch.float32
    assert flow.MIN_SIGMA <= float(sigmas.min()) < float(sigmas.max()) <= 1
    assert len(flow.timesteps(sigmas).round().unique()) > 900
