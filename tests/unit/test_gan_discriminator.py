"""The discriminator against numbers of the published one, and what they do not show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worker.families.gan.losses import squared_gradient_norm
from worker.families.gan.networks.discriminator import Convolution, Discriminator, DiscriminatorConfig
from worker.families.gan.networks.minibatch_std import append_minibatch_std

GOLDEN = Path(__file__).parents[1] / "golden"
#: Relative, of the largest number.
TOLERANCE = 1e-5


def golden_config(name: str) -> DiscriminatorConfig:
    config = json.loads((GOLDEN / f"discriminator-{name}.json").read_text())["config"]
    return DiscriminatorConfig(
        resolution=config["img_resolution"],
        num_classes=config["c_dim"],
        image_channels=config["img_channels"],
        channel_base=config["channel_base"],
        channel_max=config["channel_max"],
        mapping_layers=config["mapping_num_layers"],
        group_size=config["mbstd_group_size"],
    )


def golden_discriminator(name: str) -> Discriminator:
    discriminator = Discriminator(golden_config(name))
    discriminator.load_state_dict(load_file(GOLDEN / f"discriminator-{name}.state.safetensors"), strict=True)
    return discriminator


def small(**changes: int) -> Discriminator:
    torch.manual_seed(3)
    return Discriminator(DiscriminatorConfig(**{"resolution": 16, "channel_base": 256, "channel_max": 16} | changes))


def assert_agrees(found: Tensor, expected: Tensor, relative: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert float((found.detach() - expected).abs().max() / expected.abs().max()) <= relative


@pytest.mark.parametrize("name", ["uncond", "cond3"])
def test_the_state_has_exactly_the_published_names_and_shapes(name: str) -> None:
    published = json.loads((GOLDEN / f"discriminator-{name}.json").read_text())["state"]
    state = Discriminator(golden_config(name)).state_dict()
    assert {key: list(tensor.shape) for key, tensor in state.items()} == published


def test_a_new_discriminator_blurs_with_the_published_filter() -> None:
    published = load_file(GOLDEN / "discriminator-uncond.state.safetensors")
    new = Discriminator(golden_config("uncond")).state_dict()
    filters = [key for key in new if key.endswith("resample_filter")]
    assert len(filters) == 18
    assert all(torch.equal(new[key], published[key]) for key in filters)


@pytest.mark.parametrize("name", ["uncond", "cond3"])
def test_logits_gradients_and_r1_are_those_of_the_reference(name: str) -> None:
    discriminator, golden = golden_discriminator(name), load_file(GOLDEN / f"discriminator-{name}.golden.safetensors")
    images = golden["images"].requires_grad_()
    logits = discriminator(images, golden["c"])
    assert_agrees(logits, golden["logits"])
    (gradient,) = torch.autograd.grad(logits.sum(), images, retain_graph=True)
    assert_agrees(gradient, golden["image_grad"])
    r1 = squared_gradient_norm(logits, images)
    assert_agrees(r1, golden["r1"])
    (second,) = torch.autograd.grad(r1.mean(), discriminator.get_parameter("b64.conv0.weight"))
    assert_agrees(second, golden["grad_of_mean_r1_wrt_b64_conv0_weight"])


def test_features_are_clamped_in_proportion_to_their_gain() -> None:
    layer, x = Convolution(4, 4, clamp=256.0), 1e6 * torch.randn(1, 4, 8, 8)
    assert float(layer(x).detach().abs().max()) == 256
    assert float(layer(x, gain=0.5).detach().abs().max()) == 128


def test_the_label_decides_what_an_image_is_compared_with() -> None:
    discriminator = small(num_classes=3, mapping_layers=2)
    images, labels = torch.randn(1, 3, 16, 16).repeat(3, 1, 1, 1), torch.eye(3)
    logits = discriminator(images, labels).flatten().tolist()
    assert len({round(logit, 5) for logit in logits}) == 3


def test_half_precision_changes_the_four_highest_resolutions_only() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(resolution=128, channel_base=512, channel_max=16))
    seen: dict[str, torch.dtype] = {}
    for name, module in discriminator.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    images = torch.randn(4, 3, 128, 128)
    exact, rounded = discriminator(images), discriminator(images, dtype=torch.bfloat16)
    assert seen == {f"b{size}": torch.bfloat16 for size in (128, 64, 32, 16)} | {
        "b8": torch.float32,
        "b4": torch.float32,
    }
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rounded, exact)


def test_minibatch_deviation_is_one_number_a_group_of_every_other_image() -> None:
    x = torch.randn(8, 5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    extended = append_minibatch_std(x, 4)
    assert torch.equal(extended[:, :5], x)
    for first in (0, 1):
        group = x[first::2].numpy()
        expected = ((group.var(axis=0) + 1e-8) ** 0.5).mean()
        assert extended[first::2, 5].numpy() == pytest.approx(expected)


@pytest.mark.parametrize(("count", "group"), [(1, 1), (2, 2), (5, 1), (6, 3), (7, 1), (8, 4)])
def test_the_largest_group_is_taken_that_divides_the_batch(count: int, group: int) -> None:
    x = torch.arange(float(count))[:, None, None, None].expand(-1, 2, 4, 4)
    members = x[:: count // group, 0, 0, 0]
    expected = float((members.var(unbiased=False) + 1e-8).sqrt())
    assert append_minibatch_std(x, 4)[:, 2, 0, 0].tolist() == pytest.approx([expected] * count)


def test_a_batch_taken_apart_with_its_groups_whole_has_the_same_gradient() -> None:
    discriminator = small().double()
    images = torch.randn(16, 3, 16, 16, dtype=torch.float64)
    whole = discriminator(images)
    for parts in (2, 4):
        taken_apart = [discriminator(images[part::parts]) for part in range(parts)]
        torch.testing.assert_close(torch.stack(taken_apart, dim=1), whole.view(-1, parts, 1))
    assert not torch.allclose(torch.cat([discriminator(images[:8]), discriminator(images[8:])]), whole)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"resolution": 48}, "power of two, at least 8, not 48"), ({"resolution": 64, "channel_base": 32}, "positive")],
)
def test_what_cannot_be_built_is_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorConfig(**config)


def test_what_does_not_fit_is_refused() -> None:
    plain, conditional = small(), small(num_classes=3)
    images = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"images have the shape \[N, 3, 16, 16\]; these are \[2, 3, 32, 32\]"):
        plain(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="unconditional"):
        plain(images, torch.eye(3)[:2])
    with pytest.raises(ValueError, match=r"needs labels of the shape \[2, 3\]"):
        conditional(images)
    with pytest.raises(ValueError, match=r"labels have the shape \[2, 3\]; these are \[3, 3\]"):
        conditional(images, torch.eye(3))
