"""The running mean of a generator."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from worker.families.gan.ema import Ema, decay, half_life


def model(value: float = 0.0) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def test_the_half_life_follows_the_batch() -> None:
    assert half_life(32) == 10_000
    assert half_life(8) == 2_500
    assert half_life(32, 5.0) == 5_000


def test_after_a_half_life_half_of_the_start_is_left() -> None:
    kept = decay(10**9, 32, half_life(32))
    assert kept ** (10_000 / 32) == pytest.approx(0.5)


def test_the_half_life_is_at_most_a_twentieth_of_what_was_seen() -> None:
    assert decay(0, 32, 10_000) == 0.0
    assert decay(64_000, 32, 10_000) == pytest.approx(0.5 ** (32 / 3_200))
    assert decay(200_000, 32, 10_000) == decay(10**9, 32, 10_000)
    assert decay(0, 32, 10_000, ramp_up=None) == pytest.approx(0.5 ** (32 / 10_000))


def test_the_mean_starts_as_a_copy_that_the_training_does_not_touch() -> None:
    source = model(1.0)
    mean = Ema(source)
    with torch.no_grad():
        source[0].weight.fill_(5.0)
    assert mean.model[0].weight.eq(1.0).all()
    assert not mean.model.training and source.training
    assert not any(parameter.requires_grad for parameter in mean.model.parameters())
    assert all(parameter.requires_grad for parameter in source.parameters())


def test_parameters_follow_slowly_and_buffers_at_once() -> None:
    source = model(1.0)
    mean = Ema(source)
    with torch.no_grad():
        source[0].weight.fill_(3.0)
        source[1].running_mean.fill_(7.0)
        source[1].num_batches_tracked.fill_(9)
    mean.update(source, 0.75)
    assert mean.model[0].weight.eq(1.5).all()
    assert mean.model[1].running_mean.eq(7.0).all() and int(mean.model[1].num_batches_tracked) == 9
    mean.update(source, 0.75)
    assert mean.model[0].weight.eq(1.875).all()
    mean.update(source, 0.0)
    assert mean.model[0].weight.eq(3.0).all()


def test_the_mean_of_a_series_is_its_closed_form() -> None:
    source = model(0.0)
    mean = Ema(source)
    values = [math.sin(step) for step in range(20)]
    for value in values:
        with torch.no_grad():
            source[0].bias.fill_(value)
        mean.update(source, 0.9)
    expected = sum(0.1 * 0.9 ** (19 - step) * value for step, value in enumerate(values))
    assert mean.model[0].bias.tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_a_mean_that_was_saved_goes_on_bitwise() -> None:
    torch.manual_seed(0)
    source = model(1.0)
    first = Ema(source)
    second = Ema(model(0.0))
    nn.init.normal_(source[0].weight)
    first.update(source, 0.3)
    second.model.load_state_dict(first.model.state_dict())
    for mean in (first, second):
        mean.update(source, 0.9)
    assert all(torch.equal(one, second.model.state_dict()[name]) for name, one in first.model.state_dict().items())


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="other parameters or buffers"):
        Ema(model()).update(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)), 0.5)
