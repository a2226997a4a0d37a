"""Resampling against SciPy's convolution, and its derivatives against finite differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from worker.families.gan.networks.filtered_lrelu import filtered_lrelu
from worker.families.gan.networks.modulated_conv import modulated_conv2d
from worker.families.gan.networks.resample import Padding, filter_padding, upfirdn2d

PADDINGS: list[Padding] = [(0, 0, 0, 0), (12, 11, 13, 14), (-1, 2, 1, -2)]
FILTER_SHAPES = [(1,), (5,), (3, 4)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_scipy(x: Tensor, f: Tensor, up: int, down: int, padding: Padding, gain: float, flip: bool) -> np.ndarray:
    """What the documentation of `upfirdn2d` says, step by step."""
    taps = f.numpy() if f.dim() == 2 else np.outer(f.numpy(), f.numpy())
    taps = gain * (taps[::-1, ::-1] if flip else taps)
    count, channels, height, width = x.shape
    spread = np.zeros((count, channels, height * up, width * up))
    spread[:, :, ::up, ::up] = x.numpy()
    left, right, top, bottom = padding
    wide = np.pad(spread, ((0, 0), (0, 0), (max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))))
    wide = wide[:, :, max(-top, 0) : wide.shape[2] - max(-bottom, 0), max(-left, 0) : wide.shape[3] - max(-right, 0)]
    filtered = [[scipy.signal.convolve2d(channel, taps, mode="valid") for channel in image] for image in wide]
    return np.asarray(filtered)[:, :, ::down, ::down]


@pytest.mark.parametrize("shape", FILTER_SHAPES)
@pytest.mark.parametrize("flip", [False, True])
def test_resampling_is_what_scipy_computes(shape: tuple[int, ...], flip: bool) -> None:
    x, f = normal(2, 3, 9, 10), normal(*shape, seed=1)
    for up, down, padding in product((1, 2, 3), (1, 2, 3), PADDINGS):
        found = upfirdn2d(x, f, up=up, down=down, padding=padding, gain=1.7, flip=flip)
        expected = by_scipy(x, f, up, down, padding, 1.7, flip)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12, err_msg=f"{up=} {down=} {padding=}")


def test_without_a_filter_pixels_are_only_spread_and_thinned() -> None:
    x = normal(1, 2, 4, 4)
    spread = upfirdn2d(x, None, up=3, padding=(1, 0, 0, 0))
    assert spread.shape == (1, 2, 12, 13)
    assert torch.equal(spread[:, :, ::3, 1::3], x)
    assert torch.equal(upfirdn2d(spread, None, down=3, padding=(-1, 0, 0, 0), gain=2.0), 2 * x)
    with pytest.raises(ValueError, match="smaller than the filter"):
        upfirdn2d(x, None, padding=(-4, 0, 0, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_resampling_stays_in_the_dtype_of_the_image(dtype: torch.dtype) -> None:
    f = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    assert upfirdn2d(normal(1, 1, 4, 4, dtype=dtype), f, up=2, padding=filter_padding(4, up=2)).dtype == dtype


@pytest.mark.parametrize("taps", [2, 3, 4, 5, 12])
@pytest.mark.parametrize("rate", [1, 2])
def test_padding_for_a_filter_keeps_a_ramp_where_it_is(taps: int, rate: int) -> None:
    # A binomial filter keeps straight lines, upsampled ones as well: its even taps weigh as much as its odd ones.
    f = torch.from_numpy(scipy.special.comb(taps - 1, np.arange(taps))) / 2.0 ** (taps - 1)
    ramp = torch.arange(32, dtype=torch.float64)[None, None, None, :].expand(1, 1, 32, 32)
    down = upfirdn2d(ramp, f, down=rate, padding=filter_padding(taps, down=rate))
    up = upfirdn2d(ramp, f, up=rate, gain=rate**2, padding=filter_padding(taps, up=rate))
    assert down.shape == (1, 1, 32 // rate, 32 // rate)
    assert up.shape == (1, 1, 32 * rate, 32 * rate)
    # Middles of the new pixels, in old ones. A filter whose middle falls between pixels moves the image by half a one.
    middles_down = rate * torch.arange(32 // rate) + (rate - 1) / 2
    middles_up = (torch.arange(32 * rate) - (rate - 1) / 2) / rate
    off = 0.5 if (taps + rate) % 2 == 1 else 0.0
    inner_down, inner_up = slice(8 // rate, -8 // rate), slice(8 * rate, -8 * rate)
    assert torch.allclose(down[0, 0, 16 // rate, inner_down], (middles_down - off)[inner_down].double())
    found = up[0, 0, 16 * rate, inner_up].view(-1, rate).mean(1)
    expected = (middles_up - off / rate)[inner_up].double().view(-1, rate).mean(1)
    assert torch.allclose(found, expected)


@pytest.mark.parametrize(
    ("x", "f", "options", "complaint"),
    [
        (normal(2, 3, 4), None, {}, r"\[N, C, H, W\]; these are \[2, 3, 4\]"),
        (normal(1, 1, 4, 4), normal(1, 2, 2), {}, r"\[taps\] or \[height, width\]; this one is \[1, 2, 2\]"),
        (normal(1, 1, 4, 4), None, {"up": 0}, "rates are at least 1; up is 0"),
        (normal(1, 1, 4, 4), normal(5), {}, "smaller than the filter"),
    ],
)
def test_what_cannot_be_resampled_is_refused(
    x: Tensor, f: Tensor | None, options: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        upfirdn2d(x, f, up=options.get("up", 1))


def test_a_filtered_lrelu_without_filters_is_a_leaky_relu() -> None:
    x, bias = normal(2, 3, 4, 4), normal(3, seed=1)
    found = filtered_lrelu(x, None, None, bias, gain=2.0, slope=0.1, clamp=0.5)
    shifted = x + bias[:, None, None]
    assert torch.allclose(found, (2 * torch.where(shifted > 0, shifted, 0.1 * shifted)).clamp(-0.5, 0.5))


def test_a_filtered_lrelu_acts_at_the_higher_rate_in_the_documented_order() -> None:
    x, up, down, bias = normal(1, 2, 6, 6), normal(4, seed=1), normal(3, seed=2), normal(2, seed=3)
    upsampled = by_scipy(x + bias[:, None, None], up, 2, 1, (3, 2, 3, 2), 4.0, False)
    bent = np.clip(np.where(upsampled > 0, upsampled, 0.2 * upsampled) * 2**0.5, -1, 1)
    expected = by_scipy(torch.from_numpy(bent), down, 1, 2, (0, 0, 0, 0), 1.0, False)
    found = filtered_lrelu(x, up, down, bias, up=2, down=2, padding=(3, 2, 3, 2), clamp=1.0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_a_bias_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the bias has the shape \[2\].*need \[3\]"):
        filtered_lrelu(normal(1, 3, 4, 4), None, None, normal(2))


@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_first_and_second_derivatives_of_resampling_are_right(up: int, down: int, shape: tuple[int, ...]) -> None:
    x, f = normal(1, 2, 3, 3).requires_grad_(), normal(*shape, seed=1).requires_grad_()

    def resample(x: Tensor, f: Tensor) -> Tensor:
        return upfirdn2d(x, f, up=up, down=down, padding=(1, 2, 2, -1), gain=1.3)

    assert gradcheck(resample, (x, f))
    assert gradgradcheck(resample, (x, f))


def test_first_and_second_derivatives_of_the_filtered_lrelu_are_right() -> None:
    x, bias = normal(1, 2, 4, 4).requires_grad_(), normal(2, seed=1).requires_grad_()
    up, down = normal(4, seed=2), normal(4, seed=3)

    def bend(x: Tensor, bias: Tensor) -> Tensor:
        return filtered_lrelu(x, up, down, bias, up=2, down=2, padding=(3, 2, 3, 2), clamp=4.0)

    assert gradcheck(bend, (x, bias))
    assert gradgradcheck(bend, (x, bias))


def test_a_modulated_convolution_is_one_of_modulated_weights() -> None:
    x, weight, styles = normal(3, 4, 5, 5), normal(2, 4, 3, 3, seed=1), normal(3, 4, seed=2)
    found = modulated_conv2d(x, weight, styles, input_gain=torch.tensor(0.5), padding=2)
    # Written as in the paper: normalise both, modulate the weights of each image, demodulate, convolve.
    weight = weight / weight.square().mean((1, 2, 3), keepdim=True).sqrt()
    modulated = weight * (styles / styles.square().mean().sqrt())[:, None, :, None, None]
    modulated = modulated / (modulated.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    pairs = zip(x, modulated, strict=True)
    expected = [torch.nn.functional.conv2d(image[None], 0.5 * kernel, padding=2) for image, kernel in pairs]
    assert torch.allclose(found, torch.cat(expected), rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives_of_the_modulated_convolution_are_right() -> None:
    inputs = (normal(2, 2, 3, 3), normal(2, 2, 3, 3, seed=1), normal(2, 2, seed=2))
    inputs = tuple(one.requires_grad_() for one in inputs)
    assert gradcheck(modulated_conv2d, inputs)
    assert gradgradcheck(modulated_conv2d, inputs)


def test_styles_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"styles \[1, 3\] do not fit images \[1, 2, 4, 4\]"):
        modulated_conv2d(normal(1, 2, 4, 4), normal(2, 2, 1, 1), normal(1, 3))
