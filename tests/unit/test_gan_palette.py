"""R3GAN's two additions to its paper: patches, and images of few flat colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from worker.families.gan.losses import gradient_penalty
from worker.families.gan.networks.palette import PaletteHead
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.stored import load_generator, save_version


def config(**changes: Any) -> R3GANConfig:
    widths: dict[str, Any] = {"channel_base": 256, "channel_max": 16, "blocks_per_stage": 1, "num_classes": 3}
    return R3GANConfig(resolution=32, **widths | {"patch": 2, "palette": 2} | changes)


def networks(settings: R3GANConfig) -> tuple[R3GANGenerator, R3GANDiscriminator]:
    torch.manual_seed(0)
    return R3GANGenerator(settings), R3GANDiscriminator(settings)


def decided(head: PaletteHead) -> PaletteHead:
    """A head whose areas are sure of their colour: what an untrained one mixes."""
    with torch.no_grad():
        head.shares.weight.mul_(1e4)
    return head


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("palette", [0, 3])
def test_images_have_their_size_whatever_a_place_stands_for(patch: int, palette: int) -> None:
    generator, discriminator = networks(config(patch=patch, palette=palette))
    images = generator(torch.randn(2, 64), torch.eye(3)[:2])
    assert images.shape == (2, 3, 32, 32)
    assert discriminator(images, torch.eye(3)[:2]).shape == (2, 1)


def test_no_stage_works_at_a_resolution_finer_than_the_patches() -> None:
    for network in networks(config()):
        stages = [name for name, _ in network.named_children() if name.startswith("stage")]
        assert sorted(stages) == ["stage16", "stage4", "stage8"]


def test_every_pixel_is_a_colour_of_the_palette_or_white() -> None:
    torch.manual_seed(0)
    head = decided(PaletteHead(5, 8, colours=2, patch=2, image_channels=3))
    x, source = torch.randn(3, 8, 16, 16), torch.randn(3, 5)
    images = head(x, source).detach()
    known = torch.cat([torch.ones(3, 1, 3), head.palette(source).detach()], dim=1)
    distances = torch.cdist(images.flatten(2).transpose(1, 2), known)
    nearest, which = distances.min(dim=2)
    assert float((nearest < 1e-3).float().mean()) > 0.99
    assert all(set(one.tolist()) == {0, 1, 2} for one in which)


def test_a_pixel_that_is_unsure_lies_between_its_colours() -> None:
    torch.manual_seed(0)
    head = PaletteHead(5, 8, colours=2, patch=1, image_channels=3)
    images, palette = head(torch.randn(4, 8, 8, 8), torch.randn(4, 5)), head.palette(torch.zeros(4, 5))
    assert images.abs().max() <= 1
    # Of nothing comes mid-grey, and an even mixture of it and white, twice and once, is a third of white.
    even = head(torch.zeros(4, 8, 8, 8), torch.zeros(4, 5))
    torch.testing.assert_close(palette, torch.zeros(4, 2, 3))
    torch.testing.assert_close(even, torch.full((4, 3, 8, 8), 1 / 3))


def test_the_colours_hang_on_the_label_and_the_areas_stay_where_they_are() -> None:
    torch.manual_seed(0)
    head = decided(PaletteHead(5, 8, colours=1, patch=1, image_channels=3))
    x = torch.randn(1, 8, 8, 8)
    red, blue = (head(x, torch.randn(1, 5)).detach() for _ in range(2))
    white = [(image > 0.999).all(dim=1) for image in (red, blue)]
    assert torch.equal(*white)
    assert not torch.allclose(red, blue)


def test_the_penalty_of_gradients_reaches_through_the_patches() -> None:
    _, discriminator = networks(config())
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    gradient_penalty(discriminator(images, torch.eye(3)[:2]), images, 1.0).sum().backward()
    assert discriminator.image.weight.grad is not None
    assert discriminator.image.weight.grad.abs().min() > 0


def test_a_step_reaches_the_colours_and_the_areas() -> None:
    generator, _ = networks(config())
    generator(torch.randn(4, 64), torch.eye(3)[[0, 1, 2, 0]]).square().sum().backward()
    head = generator.image
    assert isinstance(head, PaletteHead)
    for layer in (head.shares, head.hidden, head.colours):
        assert layer.weight.grad is not None
        assert layer.weight.grad.abs().max() > 0


def test_without_them_the_networks_are_those_of_the_paper() -> None:
    for network in networks(config(patch=1, palette=0)):
        assert {name for name in network.state_dict() if name.startswith("image.")} == {"image.weight", "image.bias"}
        assert "stage32.0.widen.weight" in network.state_dict()


def test_a_stored_one_makes_the_same_images(tmp_path: Path) -> None:
    generator, discriminator = networks(config())
    save_version(tmp_path, generator, labels=list("abc"), provenance={}, discriminator=discriminator)
    stored = load_generator(tmp_path, torch.device("cpu"))
    z, labels = torch.randn(3, 64), torch.eye(3)
    assert torch.equal(stored.generator(z, labels), generator(z, labels))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, r"patch \(3\) is a power of two, at most 4"),
        ({"patch": 8}, r"patch \(8\) is a power of two, at most 4"),
        ({"patch": 0}, r"patch \(0\) is a power of two"),
        ({"palette": -1}, r"palette \(-1\) are not negative"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)
