"""Low-pass filters for StyleGAN3: Kaiser-windowed sinc, and its radial counterpart made of jinc.

Karras et al., "Alias-Free Generative Adversarial Networks" (arXiv 2106.12423, "the paper"), Appendix C.
Frequencies are in cycles per unit of length, the unit being the side of the image's canvas. Filters are designed in
float64 once, when a network is built, and returned in fp32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lowpass_filter(taps: int, *, cutoff: float, width: float, sampling_rate: float, radial: bool = False) -> Tensor:
    """An FIR low-pass filter, fp32 `[taps]`, or `[taps, taps]` where radial, whose coefficients sum to 1.

    It passes half at `cutoff` and fades over a band of `width` around it; the more taps, the cleaner outside that
    band. The separable filter's pass band is a square, the radial filter's a disc, which turning the image does not
    change. (Appendix C; the former is `scipy.signal.firwin(taps, cutoff, width=width, fs=sampling_rate)`)
    """
    if taps < 1:
        raise ValueError(f"a filter has at least one tap, not {taps}")
    if not 0 < cutoff < sampling_rate / 2:
        raise ValueError(f"the cutoff lies between 0 and half the sampling rate {sampling_rate:g}; it is {cutoff:g}")
    distance = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / sampling_rate
    window = kaiser_window(taps, kaiser_beta(taps, width / (sampling_rate / 2)))
    if radial:
        impulse = _jinc(torch.hypot(distance[:, None], distance[None, :]), cutoff) * torch.outer(window, window)
    else:
        impulse = torch.sinc(2 * cutoff * distance) * window
    return (impulse / impulse.sum()).float()


def kaiser_beta(taps: int, width: float) -> float:
    """β of the Kaiser window, for a transition band `width` wide as a share of half the sampling rate.

    The attenuation in dB that so many taps allow is 2.285·(taps − 1)·π·width + 7.95; β follows from it by Kaiser's
    empirical fit. (Kaiser 1974; the paper, Appendix C)
    """
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * math.pow(attenuation - 21, 0.4) + 0.07886 * (attenuation - 21)
    return 0.0


def kaiser_window(taps: int, beta: float) -> Tensor:
    """I₀(β·√(1 − x²)) / I₀(β) for x from −1 to 1, float64 `[taps]`. (The paper, Appendix C)"""
    place = torch.linspace(-1, 1, taps, dtype=torch.float64) if taps > 1 else torch.zeros(1, dtype=torch.float64)
    window: Tensor = torch.special.i0(beta * torch.sqrt((1 - place.square()).clamp_min(0)))
    largest: Tensor = torch.special.i0(torch.tensor(beta, dtype=torch.float64))
    return window / largest


def _jinc(radius: Tensor, cutoff: float) -> Tensor:
    """The impulse response of the ideal radial low-pass, 2·J₁(2π·fc·r)/(2π·fc·r), 1 in the middle."""
    phase = 2 * math.pi * cutoff * radius
    safe = torch.where(phase == 0, 1.0, phase)
    return torch.where(phase == 0, 1.0, 2 * torch.special.bessel_j1(safe) / safe)
