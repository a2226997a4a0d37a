"""What a StyleGAN3 generator's filters and its amount of arithmetic are, beside SciPy's and the published ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import scipy.signal
import scipy.special
from torch import Tensor

from worker.families.gan.networks.flops import dense_flops, forward_flops
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.layer_plan import LayerPlan, Signal, plan_layers
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config, stylegan3_r, stylegan3_t

#: TFLOP an image, by the authors' own networks.
PUBLISHED: Final[dict[str, tuple[StyleGAN3Config, float]]] = {
    "StyleGAN3-T 256": (stylegan3_t(256), 0.508),
    "StyleGAN3-T 512": (stylegan3_t(512), 0.631),
    "StyleGAN3-T 1024": (stylegan3_t(1024), 0.728),
    "StyleGAN3-R 1024": (stylegan3_r(1024), 1.040),
}
EVERY: Final = tuple(PUBLISHED)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """The arithmetic of one image by one network, in floating-point operations."""

    network: str
    published: float
    #: Counted as the published figure is.
    dense: int
    #: What is computed here: without the zeros of upsampling and the pixels that are dropped.
    here: int

    @property
    def deviation(self) -> float:
        """From the published figure, relative."""
        return abs(self.dense / self.published - 1)


def amounts(networks: Sequence[str]) -> list[Amount]:
    """Of the networks named."""
    return [
        Amount(network=name, published=1e12 * tera, dense=dense_flops(config), here=forward_flops(config))
        for name, (config, tera) in PUBLISHED.items()
        if name in networks
    ]


@dataclass(frozen=True, kw_only=True)
class FilterCheck:
    """The filters of one network beside SciPy's designs of the same numbers."""

    network: str
    filters: int
    #: Among the taps of all, which sum to 1 in each.
    largest_difference: float


def filter_checks(resolutions: Sequence[int]) -> list[FilterCheck]:
    """The filters that networks of these sizes carry; widths do not matter to them, and are the least."""
    found = []
    for name, configure in {"StyleGAN3-T": stylegan3_t, "StyleGAN3-R": stylegan3_r}.items():
        for resolution in resolutions:
            config = configure(resolution, z_dim=1, w_dim=1, channel_base=1, channel_max=1)
            differences = list(_filter_differences(config))
            found.append(
                FilterCheck(
                    network=f"{name} {resolution}", filters=len(differences), largest_difference=max(differences)
                )
            )
    return found


def _filter_differences(config: StyleGAN3Config) -> Iterator[float]:
    generator = StyleGAN3Generator(config)
    for plan in plan_layers(config)[1]:
        layer = generator.synthesis.get_submodule(plan.name)
        sides = ((layer.up_filter, plan.source, False), (layer.down_filter, plan.target, plan.down_radial))
        for taps, signal, radial in sides:
            if isinstance(taps, Tensor):
                design = _scipy_design(taps.shape[0], signal, plan, radial=radial)
                yield float(np.abs(taps.double().numpy() - design).max())


def _scipy_design(taps: int, signal: Signal, plan: LayerPlan, *, radial: bool) -> np.ndarray[Any, Any]:
    width, rate = 2 * signal.half_width, plan.tmp_sampling_rate
    if not radial:
        separable: np.ndarray[Any, Any] = scipy.signal.firwin(taps, signal.cutoff, width=width, fs=rate)
        return separable
    place = (np.arange(taps) - (taps - 1) / 2) / rate
    radius = np.hypot(*np.meshgrid(place, place))
    # SciPy has no radial design; this is the ideal one, whose value in the middle is a limit, in SciPy's window.
    radius[radius == 0] = 1e-9
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2)))
    window = scipy.signal.windows.kaiser(taps, beta)
    design = scipy.special.j1(2 * signal.cutoff * np.pi * radius) / (np.pi * radius) * np.outer(window, window)
    scaled: np.ndarray[Any, Any] = design / design.sum()
    return scaled
