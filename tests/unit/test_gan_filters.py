"""Low-pass filters against SciPy's designs, and against what a low-pass filter is for."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch

from worker.families.gan.networks.filters import kaiser_beta, kaiser_window, lowpass_filter

#: taps, cutoff, width, sampling rate: three of StyleGAN3's layers, and an odd length.
DESIGNS = [(12, 2.0, 12.0, 32), (24, 4.0, 8.0, 64), (12, 32.0, 14.793242, 128), (11, 5.0, 6.0, 48)]


@pytest.mark.parametrize(("taps", "cutoff", "width", "rate"), DESIGNS)
def test_the_separable_design_is_scipys(taps: int, cutoff: float, width: float, rate: int) -> None:
    expected = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
    found = lowpass_filter(taps, cutoff=cutoff, width=width, sampling_rate=rate)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("taps", "cutoff", "width", "rate"), DESIGNS)
def test_the_radial_design_is_jinc_in_a_kaiser_window(taps: int, cutoff: float, width: float, rate: int) -> None:
    place = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(*np.meshgrid(place, place))
    radius[radius == 0] = 1e-9
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2)))
    window = scipy.signal.windows.kaiser(taps, beta)
    expected = scipy.special.j1(2 * cutoff * np.pi * radius) / (np.pi * radius) * np.outer(window, window)
    found = lowpass_filter(taps, cutoff=cutoff, width=width, sampling_rate=rate, radial=True)
    np.testing.assert_allclose(found.numpy(), expected / expected.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("width", [0.01, 0.1, 0.3, 0.9])
def test_the_window_is_scipys_in_each_branch_of_kaisers_fit(width: float) -> None:
    beta = kaiser_beta(12, width)
    assert beta == pytest.approx(scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(12, width)), rel=1e-12)
    np.testing.assert_allclose(kaiser_window(12, beta).numpy(), scipy.signal.windows.kaiser(12, beta), rtol=1e-12)
    assert kaiser_window(1, beta).tolist() == [1.0]


@pytest.mark.parametrize("radial", [False, True])
def test_a_filter_passes_low_frequencies_and_stops_high_ones(radial: bool) -> None:
    f = lowpass_filter(48, cutoff=8.0, width=8.0, sampling_rate=64, radial=radial).double()
    rows = f.sum(0) if radial else f
    frequencies = torch.tensor([0.0, 2.0, 8.0, 14.0, 24.0, 32.0], dtype=torch.float64)
    place = (torch.arange(48) - 23.5) / 64
    response = (rows * torch.cos(2 * torch.pi * frequencies[:, None] * place)).sum(1).abs()
    assert torch.allclose(response[:2], torch.ones(2, dtype=torch.float64), atol=0.02)
    assert float(response[2]) == pytest.approx(0.5, abs=0.06)
    assert float(response[3:].max()) < 0.01


def test_a_radial_filter_stops_the_corners_that_a_separable_one_passes() -> None:
    place = (torch.arange(48) - 23.5) / 64
    # 6.5 cycles along each axis lie within the square of ±8, but 9.2 cycles along the diagonal beyond the disc.
    wave = torch.cos(2 * torch.pi * 6.5 * place)
    design = {"cutoff": 8.0, "width": 2.0, "sampling_rate": 64.0}
    separable, radial = lowpass_filter(48, **design), lowpass_filter(48, radial=True, **design)
    assert float((wave * separable).sum() ** 2) > 0.7
    assert abs(float(wave @ radial @ wave)) < 0.2


@pytest.mark.parametrize(
    ("taps", "cutoff", "complaint"),
    [(0, 2.0, "at least one tap"), (12, 16.0, "half the sampling rate 32; it is 16"), (12, 0.0, "it is 0")],
)
def test_a_filter_that_cannot_be_is_refused(taps: int, cutoff: float, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        lowpass_filter(taps, cutoff=cutoff, width=4.0, sampling_rate=32)
