"""R3GAN's networks: what the paper says of them, seen from outside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as functional

from worker.families.gan.losses import gradient_penalty, relativistic_discriminator_loss, relativistic_generator_loss
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_blocks import Downsample, ResidualBlock, Upsample
from worker.families.gan.networks.r3gan_config import R3GANConfig


def config(resolution: int = 32, **changes: int) -> R3GANConfig:
    return R3GANConfig(resolution=resolution, **{"channel_base": 512, "channel_max": 32} | changes)


def networks(settings: R3GANConfig, seed: int = 0) -> tuple[R3GANGenerator, R3GANDiscriminator]:
    torch.manual_seed(seed)
    return R3GANGenerator(settings), R3GANDiscriminator(settings)


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_every_resolution_gives_images_of_its_size_and_a_logit_each(resolution: int, num_classes: int) -> None:
    generator, discriminator = networks(config(resolution, num_classes=num_classes))
    labels = torch.eye(3)[:2] if num_classes else None
    images = generator(torch.randn(2, 64), labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert discriminator(images, labels).shape == (2, 1)


def test_widths_at_256_are_those_of_the_paper() -> None:
    settings = R3GANConfig(resolution=256)
    assert [settings.channels(size) for size in settings.stages] == [768, 768, 768, 768, 768, 384, 192]


def test_a_residual_block_starts_as_the_identity_and_its_others_weights_shrink_with_the_depth() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 64, 8, 8)
    for blocks in (1, 16):
        block = ResidualBlock(64, expansion=2, group_width=16, kernel=3, blocks=blocks)
        assert torch.equal(block(x), x)
        he = (2 / (1 + 0.2**2)) ** 0.5
        assert float(block.widen.weight.detach().std()) == pytest.approx(he / 64**0.5 * blocks**-0.25, rel=0.05)
        assert float(block.spatial.weight.detach().std()) == pytest.approx(
            he / (16 * 9) ** 0.5 * blocks**-0.25, rel=0.05
        )


def test_the_branch_of_a_block_keeps_the_variance_where_there_is_but_one_block() -> None:
    torch.manual_seed(0)
    block = ResidualBlock(64, expansion=2, group_width=16, kernel=3, blocks=1)
    inner = functional.leaky_relu(block.widen(torch.randn(4, 64, 16, 16)), 0.2)
    assert float(inner.detach().square().mean()) == pytest.approx(1.0, rel=0.1)


def test_the_wide_convolution_works_in_groups() -> None:
    block = ResidualBlock(32, expansion=2, group_width=16, kernel=3, blocks=4)
    x = torch.randn(1, 64, 8, 8, requires_grad=True)
    block.spatial(x)[:, :16].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :16].abs().min() > 0 and x.grad[:, 16:].abs().max() == 0


def test_upsampling_interpolates_and_downsampling_is_its_adjoint() -> None:
    up, down = Upsample(3, 3).double(), Downsample(3, 3).double()
    coarse = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    fine = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    finer = up(coarse)
    known = functional.interpolate(coarse, size=15, mode="bilinear", align_corners=True)
    # Both keep the pixels and put one between two of them. The last is between a pixel and the border's zero.
    torch.testing.assert_close(finer[:, :, :15, :15], known)
    torch.testing.assert_close((finer * fine).sum(), 4 * (coarse * down(fine)).sum())


def test_the_generators_image_hangs_on_its_latent_through_the_basis() -> None:
    generator, _ = networks(config())
    z = torch.randn(2, 64)
    maps = generator.basis(z)
    ratio = maps[0] / maps[1]
    # Each map is one learned pattern, stronger or weaker.
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*generator(z))


def test_images_and_logits_start_at_a_size_that_can_be_learned_from() -> None:
    generator, discriminator = networks(config(64, channel_base=2048, channel_max=64))
    images = generator(torch.randn(16, 64))
    assert 0.2 < float(images.detach().std()) < 2.0
    assert 0.05 < float(discriminator(images).detach().std()) < 5.0


def test_the_label_changes_the_image_and_the_logit() -> None:
    generator, discriminator = networks(config(num_classes=3))
    z, labels = torch.randn(1, 64).repeat(3, 1), torch.eye(3)
    images = generator(z, labels)
    assert all(not torch.allclose(images[one], images[other]) for one, other in ((0, 1), (1, 2), (0, 2)))
    logits = discriminator(images[:1].repeat(3, 1, 1, 1), labels).flatten().tolist()
    assert len({round(logit, 5) for logit in logits}) == 3


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    generator, discriminator = networks(config())
    z = torch.randn(4, 64)
    images = generator(z)
    torch.testing.assert_close(generator(z[2:3]), images[2:3])
    torch.testing.assert_close(discriminator(images[2:3]), discriminator(images)[2:3])


@pytest.mark.parametrize("which", [0, 1])
def test_half_precision_changes_the_four_highest_resolutions_only(which: int) -> None:
    network = networks(config(128, channel_base=2048, channel_max=16))[which]
    seen: dict[str, torch.dtype] = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
    inputs = torch.randn(2, 64) if which == 0 else torch.randn(2, 3, 128, 128)
    rounded, exact = network(inputs, dtype=torch.bfloat16), network(inputs)
    stages = {name for name in seen if name.startswith("stage")}
    network(inputs, dtype=torch.bfloat16)
    low = {name for name in stages if seen[name] == torch.bfloat16}
    assert low == {f"stage{size}" for size in (128, 64, 32, 16)} and len(stages) == 6
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)
    assert not torch.equal(rounded, exact)


def test_a_step_of_both_reaches_every_parameter_in_the_end() -> None:
    """At the very start the zeroed convolutions hide what is before them; after two steps nothing is hidden."""
    generator, discriminator = networks(config(16, num_classes=2))
    labels, real = torch.eye(2).repeat(2, 1), torch.randn(4, 3, 16, 16)
    optimizers = [torch.optim.SGD(network.parameters(), lr=1e-2) for network in (generator, discriminator)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        fake = generator(torch.randn(4, 64), labels)
        relativistic_generator_loss(discriminator(real, labels), discriminator(fake, labels)).mean().backward()
        optimizers[0].step()
        reals, fakes = real.clone().requires_grad_(), fake.detach().requires_grad_()
        optimizers[1].zero_grad()
        real_logits, fake_logits = discriminator(reals, labels), discriminator(fakes, labels)
        penalty = gradient_penalty(real_logits, reals, 0.1) + gradient_penalty(fake_logits, fakes, 0.1)
        (relativistic_discriminator_loss(real_logits, fake_logits) + penalty).mean().backward()
        optimizers[1].step()
    for network in (generator, discriminator):
        # The discriminator's last bias cancels in every difference of logits.
        silent = {name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()}
        assert silent <= {"head.logit.bias"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 8}, "at least 16, not 8"),
        ({"resolution": 48}, "power of two"),
        ({"blocks_per_stage": 0}, "positive"),
        ({"kernel": 2}, "odd"),
        ({"channel_max": 12}, "12 channels at 4×4, times 2, do not divide into groups of 16"),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_what_does_not_fit_is_refused() -> None:
    generator, discriminator = networks(config())
    with pytest.raises(ValueError, match=r"latents have the shape \[N, 64\]; these are \[2, 32\]"):
        generator(torch.zeros(2, 32))
    with pytest.raises(ValueError, match="generator is unconditional"):
        generator(torch.zeros(2, 64), torch.eye(2))
    with pytest.raises(ValueError, match=r"images have the shape \[N, 3, 32, 32\]"):
        discriminator(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match="discriminator is conditional"):
        networks(config(num_classes=2))[1](torch.zeros(2, 3, 32, 32))
