"""StyleGAN3's generator against numbers of the published one, and what they do not show."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.linear import EqualizedLinear
from worker.families.gan.networks.stylegan3_config import StyleGAN3Config, stylegan3_r, stylegan3_t
from worker.families.gan.networks.synthesis_input import SynthesisInput

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["t-uncond", "t-cond3", "r-uncond"]
#: Relative, of the largest number.
TOLERANCE = 3e-5


def golden_config(name: str) -> StyleGAN3Config:
    config = json.loads((GOLDEN / f"stylegan3-{name}.json").read_text())["config"]
    build = stylegan3_r if name.startswith("r") else stylegan3_t
    return build(
        config["img_resolution"],
        z_dim=config["z_dim"],
        w_dim=config["w_dim"],
        num_classes=config["c_dim"],
        image_channels=config["img_channels"],
        channel_base=config["channel_base"],
        channel_max=config["channel_max"],
        mapping_layers=config["mapping_kwargs"]["num_layers"],
    )


def golden_generator(name: str) -> StyleGAN3Generator:
    generator = StyleGAN3Generator(golden_config(name))
    generator.load_state_dict(load_file(GOLDEN / f"stylegan3-{name}.state.safetensors"), strict=True)
    return generator


@cache
def numbers(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"stylegan3-{name}.golden.safetensors")


def assert_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) <= tolerance


def small(build: Any = stylegan3_t, **settings: Any) -> StyleGAN3Generator:
    torch.manual_seed(3)
    defaults = {"z_dim": 8, "w_dim": 8, "channel_base": 64, "channel_max": 8, "num_layers": 6}
    return StyleGAN3Generator(build(16, **(defaults | settings)))


def latents(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_has_the_published_keys_and_shapes(name: str) -> None:
    expected = json.loads((GOLDEN / f"stylegan3-{name}.json").read_text())["state"]
    state = StyleGAN3Generator(golden_config(name)).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", NAMES)
def test_filters_of_a_new_network_are_the_published_ones(name: str) -> None:
    published = load_file(GOLDEN / f"stylegan3-{name}.state.safetensors")
    state = StyleGAN3Generator(golden_config(name)).state_dict()
    filters = [key for key in state if key.endswith("_filter")]
    assert len(filters) == 28
    for key in filters:
        assert_near(state[key], published[key], 1e-6)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_latents_give_the_published_w(name: str) -> None:
    generator, golden = golden_generator(name), numbers(name)
    assert_near(generator.mapping(golden["z"], golden["c"]), golden["w"])
    assert_near(generator.mapping(golden["z"], golden["c"], truncation_psi=0.7), golden["w_psi07"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_latents_give_the_published_images(name: str) -> None:
    generator, golden = golden_generator(name), numbers(name)
    assert_near(generator(golden["z"], golden["c"]), golden["image"])
    assert_near(generator(golden["z"], golden["c"], truncation_psi=0.7), golden["image_psi07"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_moved_input_gives_the_published_images(name: str) -> None:
    generator, golden = golden_generator(name), numbers(name)
    # The published numbers set the transform's entries, which say where the picture comes from: the other way round.
    generator.synthesis.input.set_transform(translation=(-0.25, 0.125))
    assert generator.synthesis.input.transform[:2, 2].tolist() == [0.25, -0.125]
    assert_near(generator(golden["z"], golden["c"]), golden["image_translated"])
    generator.synthesis.input.set_transform()
    assert torch.equal(generator.synthesis.input.transform, torch.eye(3))


def test_gradients_are_the_published_ones() -> None:
    generator, golden = golden_generator("t-uncond").train(), numbers("t-uncond")
    images = generator(golden["z"])
    (images * torch.linspace(-1, 1, images.numel()).view_as(images)).sum().backward()
    found = {f"grad.{key}": weights.grad for key, weights in generator.named_parameters()}
    for key, expected in load_file(GOLDEN / "stylegan3-t-uncond.grads.safetensors").items():
        gradient = found[key]
        assert gradient is not None
        assert_near(gradient, expected)


class FloatingDtypes(TorchDispatchMode):
    """Which floating dtypes operations gave."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.seen |= {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
        return result


@pytest.mark.parametrize("build", [stylegan3_t, stylegan3_r])
def test_nothing_is_computed_in_double_precision(build: Any) -> None:
    generator = small(build, num_classes=2)
    with FloatingDtypes() as dtypes:
        generator(latents(), torch.eye(2), truncation_psi=0.5, update_emas=True).square().sum().backward()
        generator.synthesis.input.set_transform(translation=(0.1, 0.2), rotation=30)
        generator(latents(), torch.eye(2), dtype=torch.bfloat16)
    assert dtypes.seen == {torch.float32, torch.bfloat16}


@torch.no_grad()
def test_bf16_changes_the_image_by_its_rounding_only() -> None:
    generator, z = golden_generator("t-uncond"), numbers("t-uncond")["z"]
    exact, rounded = generator(z), generator(z, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert 1e-4 < float((rounded - exact).norm() / exact.norm()) < 0.05


@torch.no_grad()
def test_only_layers_of_high_rates_compute_in_bf16() -> None:
    config = stylegan3_t(256, z_dim=8, w_dim=8, channel_base=16, channel_max=2, num_layers=6)
    generator = StyleGAN3Generator(config)
    given: dict[int, set[torch.dtype]] = {}
    for plan in generator.synthesis.plans:
        layer = generator.synthesis.get_submodule(plan.name)
        seen = given.setdefault(plan.target.sampling_rate, set())
        layer.register_forward_hook(lambda _, __, output, seen=seen: seen.add(output.dtype))
    generator(latents(1), dtype=torch.bfloat16)
    lowest, *others = sorted(given)
    assert given[lowest] == {torch.float32}
    assert len(others) > 1
    assert all(given[rate] == {torch.bfloat16} for rate in others)


@torch.no_grad()
def test_feature_maps_are_clamped() -> None:
    assert float(small(clamp=1e-3)(latents()).abs().max()) <= 1e-3 * 0.25 < float(small()(latents()).abs().max())


@torch.no_grad()
def test_autocast_does_not_round_the_phases_of_the_input() -> None:
    generator = small()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = generator(latents())
    assert torch.equal(inside, generator(latents()))


@torch.no_grad()
def test_truncation_moves_the_first_ws_towards_their_mean_and_no_others() -> None:
    mapping = small().mapping
    mapping.w_avg.copy_(torch.arange(8.0))
    free, cut = mapping(latents()), mapping(latents(), truncation_psi=0.25, truncation_cutoff=3)
    assert torch.allclose(cut[:, :3], mapping.w_avg + 0.25 * (free[:, :3] - mapping.w_avg))
    assert torch.equal(cut[:, 3:], free[:, 3:])
    assert torch.allclose(mapping(latents(), truncation_psi=0.0), mapping.w_avg.expand_as(free))


@torch.no_grad()
def test_an_image_depends_on_its_own_w_of_each_layer() -> None:
    generator = small()
    generator.synthesis.input.affine.weight.normal_()
    ws = generator.mapping(latents(1))
    image = generator.synthesis(ws)
    for index in range(generator.config.num_ws):
        other = ws.clone()
        other[:, index] += torch.randn(8)
        assert not torch.allclose(generator.synthesis(other), image), index


@torch.no_grad()
def test_running_means_move_only_when_asked_to() -> None:
    generator = small(magnitude_ema_beta=0.75).train()
    layer = generator.synthesis.get_submodule(generator.synthesis.plans[0].name)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    generator(latents())
    assert all(torch.equal(value, before[key]) for key, value in generator.state_dict().items())
    ws = generator.mapping(latents())
    power = generator.synthesis.input(ws[:, 0]).square().mean()
    generator(latents(), update_emas=True)
    assert torch.allclose(generator.mapping.w_avg, 0.002 * ws[:, 0].mean(0), rtol=1e-3)
    assert float(layer.magnitude_ema) == pytest.approx(0.25 * float(power) + 0.75)


@torch.no_grad()
def test_running_means_keep_feature_maps_and_images_at_unit_scale() -> None:
    generator = small(stylegan3_r, magnitude_ema_beta=0.0)
    generator.synthesis.input.weight.mul_(100)
    generator(latents(4), update_emas=True)
    assert 0.05 < float(generator(latents(4)).std()) < 2


@torch.no_grad()
def test_labels_change_the_image() -> None:
    generator = small(num_classes=2)
    first, second = generator(latents(1).repeat(2, 1), torch.eye(2))
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("num_classes", "z", "labels", "complaint"),
    [
        (3, latents(), None, r"conditional: it needs labels of the shape \[2, 3\]"),
        (3, latents(), torch.zeros(2, 0), r"conditional: it needs labels of the shape \[2, 3\]"),
        (3, latents(), torch.zeros(1, 3), r"labels have the shape \[2, 3\]; these are \[1, 3\]"),
        (0, latents(), torch.zeros(2, 3), "unconditional: labels have no use"),
        (0, torch.zeros(2, 7), None, r"latents have the shape \[N, 8\]; these are \[2, 7\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(num_classes: int, z: Tensor, labels: Tensor | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        small(num_classes=num_classes)(z, labels)


def test_ws_feature_maps_and_cutoffs_that_do_not_fit_are_refused() -> None:
    generator = small()
    with pytest.raises(ValueError, match=r"ws have the shape \[N, 8, 8\]; these are \[2, 7, 8\]"):
        generator.synthesis(torch.zeros(2, 7, 8))
    layer = generator.synthesis.get_submodule(generator.synthesis.plans[0].name)
    with pytest.raises(ValueError, match=r"layer L0_36_8 takes \[N, 8, 36, 36\]; it was given \[1, 8, 4, 4\]"):
        layer(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="truncation reaches 0 to 8 layers, not 9"):
        generator(latents(), truncation_psi=0.5, truncation_cutoff=9)
    with pytest.raises(ValueError, match=r"takes \[N, 4\]; it was given \[2, 5\]"):
        EqualizedLinear(4, 3)(torch.zeros(2, 5))


def test_a_state_of_another_network_does_not_load() -> None:
    state = load_file(GOLDEN / "stylegan3-t-uncond.state.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        StyleGAN3Generator(golden_config("t-cond3")).load_state_dict(state, strict=False)


def test_frequencies_fill_the_disc_evenly() -> None:
    torch.manual_seed(0)
    freqs = SynthesisInput(w_dim=1, channels=4096, size=4, sampling_rate=16, bandwidth=2.0).freqs
    radius = freqs.norm(dim=1)
    assert float(radius.max()) <= 2.0
    # A quarter of the area lies within half the radius.
    assert float((radius < 1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert freqs.mean(0).abs().max() < 0.1


@torch.no_grad()
def test_waves_that_the_pixels_cannot_carry_are_left_out() -> None:
    waves = SynthesisInput(w_dim=1, channels=16, size=16, sampling_rate=16, bandwidth=2.0)
    carried = waves(torch.zeros(1, 1))
    waves.freqs.mul_(2.0 / waves.freqs.norm(dim=1, keepdim=True))
    # Shrunk four times, all frequencies are those of half the sampling rate.
    waves.transform.copy_(torch.diag(torch.tensor([4.0, 4.0, 1.0])))
    assert float(carried.std()) > 0.3
    assert float(waves(torch.zeros(1, 1)).abs().max()) < 1e-5


def test_the_learning_rate_multiplier_changes_gradients_but_not_the_start() -> None:
    torch.manual_seed(0)
    plain = EqualizedLinear(4, 3, bias_init=2.0)
    torch.manual_seed(0)
    slow = EqualizedLinear(4, 3, bias_init=2.0, lr_multiplier=0.1)
    x = torch.randn(5, 4)
    assert torch.allclose(plain(x), slow(x), atol=1e-6)
    plain(x).sum().backward()
    slow(x).sum().backward()
    assert plain.weight.grad is not None
    assert slow.weight.grad is not None
    assert torch.allclose(slow.weight.grad, 0.1 * plain.weight.grad)
