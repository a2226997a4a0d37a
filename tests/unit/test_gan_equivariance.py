"""StyleGAN3 moves and turns what it draws, not where it draws it; and the measure notices when filters are broken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from worker.families.gan.networks.equivariance import (
    rotate,
    rotation_equivariance,
    shift,
    translation_equivariance,
)
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.stylegan3_config import stylegan3_r, stylegan3_t


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def latents() -> Tensor:
    return torch.randn(3, 16, generator=source())


@torch.no_grad()
def untrained(build: Any, **settings: Any) -> StyleGAN3Generator:
    """Random weights, with running means as if it had been trained: so each layer's nonlinearity is at work."""
    torch.manual_seed(0)
    channels = {"channel_base": 1024, "channel_max": 16, "num_layers": 8}
    config = build(64, z_dim=16, w_dim=16, magnitude_ema_beta=0.0, **(channels | settings))
    generator = StyleGAN3Generator(config)
    generator(latents(), update_emas=True)
    return generator


@torch.no_grad()
def break_filters(generator: StyleGAN3Generator, which: tuple[str, ...]) -> None:
    """As in networks before StyleGAN3: pixels are doubled (up), and pairs of pixels averaged (down)."""
    for name, taps in generator.named_buffers():
        if name.endswith(which):
            middle = slice(len(taps) // 2 - 1, len(taps) // 2 + 1)
            taps.zero_()[(middle,) * taps.dim()] = 0.5 ** taps.dim()


@torch.no_grad()
def test_configuration_t_is_equivariant_to_translation_only() -> None:
    generator = untrained(stylegan3_t)
    assert 0.1 < float(generator(latents()).std()) < 2
    assert translation_equivariance(generator, latents(), source=source()) > 70
    assert rotation_equivariance(generator, latents(), source=source()) < 35


@torch.no_grad()
def test_configuration_r_is_equivariant_to_rotation_as_well() -> None:
    generator = untrained(stylegan3_r)
    assert 0.1 < float(generator(latents()).std()) < 2
    assert translation_equivariance(generator, latents(), source=source()) > 65
    assert rotation_equivariance(generator, latents(), source=source()) > 65


@pytest.mark.parametrize("build", [stylegan3_t, stylegan3_r])
def test_broken_filters_are_noticed(build: Any) -> None:
    generator = untrained(build)
    break_filters(generator, ("up_filter",))
    assert translation_equivariance(generator, latents(), source=source()) < 62
    break_filters(generator, ("up_filter", "down_filter"))
    assert translation_equivariance(generator, latents(), source=source()) < 40
    assert rotation_equivariance(generator, latents(), source=source()) < 40


@pytest.mark.parametrize("build", [stylegan3_t, stylegan3_r])
def test_a_nonlinearity_at_the_rate_of_its_pixels_is_noticed(build: Any) -> None:
    aliased = untrained(build, lrelu_upsampling=1)
    assert translation_equivariance(aliased, latents(), source=source()) < 62


@torch.no_grad()
def test_the_input_moves_right_and_down_and_turns_counter_clockwise() -> None:
    generator = untrained(stylegan3_r)
    image = generator(latents())
    generator.synthesis.input.set_transform(translation=(8 / 64, -4 / 64))
    expected, inside = shift(image, 8, -4)
    assert float((generator(latents()) - expected)[..., inside].abs().max()) < 0.05
    generator.synthesis.input.set_transform(rotation=90)
    inner = (..., slice(8, -8), slice(8, -8))
    turned = torch.rot90(image, dims=(2, 3))
    assert float((generator(latents()) - turned)[inner].abs().max()) < 0.05
    # Both: turned first, then moved.
    generator.synthesis.input.set_transform(translation=(8 / 64, 0.0), rotation=90)
    expected, _ = shift(turned, 8, 0)
    assert float((generator(latents()) - expected)[..., 8:-8, 16:-8].abs().max()) < 0.05


def test_measuring_leaves_the_generators_own_transform_alone() -> None:
    generator = untrained(stylegan3_t, num_layers=4)
    generator.synthesis.input.set_transform(translation=(0.1, 0.0), rotation=20)
    before = generator.synthesis.input.transform.clone()
    translation_equivariance(generator, latents(), source=source())
    assert torch.equal(generator.synthesis.input.transform, before)


def test_a_shift_says_which_pixels_it_knows() -> None:
    image = torch.arange(12.0).view(3, 4)
    moved, inside = shift(image, 1, -1)
    assert inside.tolist() == [[False, True, True, True], [False, True, True, True], [False] * 4]
    assert moved[inside].tolist() == [4, 5, 6, 8, 9, 10]


def test_turning_an_image_of_a_smooth_wave_turns_the_wave() -> None:
    place = torch.arange(48) - 23.5
    y, x = place[:, None], place[None, :]

    def wave(right: Tensor, down: Tensor) -> Tensor:
        return torch.cos(2 * torch.pi * (0.11 * right + 0.05 * down + 0.1))

    turned, inside = rotate(wave(x, y), 30.0)
    cos, sin = torch.tensor(torch.pi / 6).cos(), torch.tensor(torch.pi / 6).sin()
    expected = wave(cos * x - sin * y, sin * x + cos * y)
    assert int(inside.sum()) > 600
    assert float((turned - expected)[inside].abs().max()) < 0.02


def test_turning_by_a_right_angle_moves_pixels_as_they_are() -> None:
    image = torch.randn(48, 48, generator=source())
    straight, inside = rotate(image, 0.0)
    turned, _ = rotate(image, 90.0)
    assert torch.allclose(turned[inside], torch.rot90(straight)[inside], atol=1e-3)
