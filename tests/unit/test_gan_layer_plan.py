"""Settings of StyleGAN3 and what follows from them, against the published networks' numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from worker.families.gan.networks import filtered_lrelu as filtered_lrelu_module
from worker.families.gan.networks.flops import dense_flops, forward_flops
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.layer_plan import LayerPlan, plan_layers
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config, stylegan3_r, stylegan3_t

GOLDEN = Path(__file__).parents[1] / "golden"

#: TFLOP an image, as published figures count.
PUBLISHED = [
    (stylegan3_t(256), 0.51),
    (stylegan3_t(512), 0.63),
    (stylegan3_t(1024), 0.73),
    (stylegan3_r(1024), 1.04),
]


def described(plan: LayerPlan) -> dict[str, Any]:
    """A plan in the words of the golden files."""
    both = {"in": plan.source, "out": plan.target}
    ends: dict[str, Any] = {}
    for side, signal in both.items():
        ends[f"{side}_channels"] = signal.channels
        ends[f"{side}_size"] = [signal.size, signal.size]
        ends[f"{side}_sampling_rate"] = signal.sampling_rate
        ends[f"{side}_cutoff"] = pytest.approx(signal.cutoff, rel=1e-12)
        ends[f"{side}_half_width"] = pytest.approx(signal.half_width, rel=1e-12)
    same = (
        "name", "is_torgb", "is_critically_sampled", "conv_kernel", "tmp_sampling_rate", "up_factor", "up_taps",
        "down_factor", "down_taps", "down_radial",
    )  # fmt: skip
    return ends | {name: getattr(plan, name) for name in same} | {"padding": list(plan.padding)}


@pytest.mark.parametrize("name", ["t-uncond", "t-cond3", "r-uncond"])
def test_every_layer_has_the_published_numbers(name: str) -> None:
    golden = json.loads((GOLDEN / f"stylegan3-{name}.json").read_text())
    build = stylegan3_r if name.startswith("r") else stylegan3_t
    channels = {key: golden["config"][key] for key in ("channel_base", "channel_max")}
    _, plans = plan_layers(build(golden["config"]["img_resolution"], **channels))
    assert [described(plan) for plan in plans] == golden["layers"]


def test_the_configurations_of_the_paper_have_their_widths() -> None:
    _, plans = plan_layers(stylegan3_t(1024))
    assert [plan.name for plan in plans][7:] == [
        "L7_276_323", "L8_276_203", "L9_532_128", "L10_1044_81", "L11_1044_51", "L12_1044_32", "L13_1024_32",
        "L14_1024_3",
    ]  # fmt: skip
    generator = StyleGAN3Generator(stylegan3_t(1024))
    # The paper, Section 4: 22.3M parameters.
    assert round(sum(weights.numel() for weights in generator.parameters()) / 1e6, 1) == 22.3


@pytest.mark.parametrize("resolution", [8, 16, 32, 128])
@pytest.mark.parametrize("build", [stylegan3_t, stylegan3_r])
def test_any_power_of_two_makes_images_of_its_size(resolution: int, build: Any) -> None:
    config = build(resolution, z_dim=4, w_dim=4, channel_base=64, channel_max=4, num_layers=6)
    assert StyleGAN3Generator(config)(torch.zeros(1, 4)).shape == (1, 3, resolution, resolution)


@pytest.mark.parametrize("resolution", [0, -64, 48, 100])
def test_a_resolution_that_is_no_power_of_two_is_refused(resolution: int) -> None:
    with pytest.raises(ValueError, match=f"a power of two, such as 64, 128 or 256; {resolution} is none"):
        stylegan3_t(resolution)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"resolution": 4}, "a resolution of 4 is too small"),
        ({"num_layers": 2}, "2 critical layers leave none of 2"),
        ({"conv_kernel": 2}, "conv_kernel is odd"),
        ({"num_classes": -1}, "num_classes is at least 0, not -1"),
        ({"channel_max": 0}, "channel_max is at least 1, not 0"),
    ],
)
def test_settings_that_no_network_can_have_are_refused(settings: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        StyleGAN3Config(**({"resolution": 64} | settings))


def dense_upfirdn2d(x: Tensor, f: Tensor | None, *, up: int = 1, down: int = 1, padding: Any = 0, **_: Any) -> Tensor:
    """Resampling that multiplies zeros and computes what is dropped: shapes only, for counting."""
    if f is None:
        return x
    height, width = x.shape[2:]
    channels = x.shape[1]
    x = x.new_empty(x.shape[0], channels, height * up, width * up)
    x = functional.pad(x, padding) if padding else x
    for kernel in [f[None, :], f[:, None]] if f.dim() == 1 else [f]:
        x = functional.conv2d(x, kernel.expand(channels, 1, *kernel.shape), groups=channels)
    return x[:, :, ::down, ::down]


@pytest.mark.parametrize(("config", "published"), PUBLISHED, ids=["T-256", "T-512", "T-1024", "R-1024"])
def test_the_arithmetic_of_the_published_networks_is_the_published_one(
    config: StyleGAN3Config, published: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = forward_flops(config)
    monkeypatch.setattr(filtered_lrelu_module, "upfirdn2d", dense_upfirdn2d)
    dense = forward_flops(config)
    assert dense / 1e12 == pytest.approx(published, rel=0.02)
    # What is not convolutions and filters is the mapping, the styles and the input's matrix.
    assert dense_flops(config) == pytest.approx(dense, rel=0.005)
    assert here < 0.95 * dense
