"""Losses and penalties against closed forms and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from worker.families.gan import losses
from worker.families.gan.augment import EVERYTHING, AugmentPipe, Parameters, augment


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


REAL, FAKE = torch.tensor([[1.5], [-0.5], [0.0]]), torch.tensor([[-2.0], [0.25], [3.0]])


@pytest.mark.parametrize("flat", [False, True])
def test_each_loss_is_its_formula_image_by_image(flat: bool) -> None:
    real, fake = (REAL[:, 0], FAKE[:, 0]) if flat else (REAL, FAKE)
    pairs = [(1.5, -2.0), (-0.5, 0.25), (0.0, 3.0)]
    expected: dict[str, tuple[Tensor, list[float]]] = {
        "logistic generator": (losses.logistic_generator_loss(fake), [softplus(-g) for _, g in pairs]),
        "logistic discriminator": (
            losses.logistic_discriminator_loss(real, fake),
            [softplus(-x) + softplus(g) for x, g in pairs],
        ),
        "relativistic generator": (
            losses.relativistic_generator_loss(real, fake),
            [softplus(-(g - x)) for x, g in pairs],
        ),
        "relativistic discriminator": (
            losses.relativistic_discriminator_loss(real, fake),
            [softplus(-(x - g)) for x, g in pairs],
        ),
    }
    for name, (found, formula) in expected.items():
        assert found.tolist() == pytest.approx(formula), name


def test_the_gradients_of_the_losses_are_their_closed_forms() -> None:
    real, fake = REAL.double().requires_grad_(), FAKE.double().requires_grad_()

    def gradient(loss: Tensor, logits: Tensor) -> list[float]:
        return torch.autograd.grad(loss.sum(), logits)[0].flatten().tolist()

    sigmoid: Callable[[Tensor], list[float]] = lambda x: torch.sigmoid(x).flatten().tolist()  # noqa: E731
    assert gradient(losses.logistic_generator_loss(fake), fake) == pytest.approx([-s for s in sigmoid(-fake)])
    assert gradient(losses.logistic_discriminator_loss(real, fake), real) == pytest.approx([-s for s in sigmoid(-real)])
    assert gradient(losses.logistic_discriminator_loss(real, fake), fake) == pytest.approx(sigmoid(fake))
    for_generator = losses.relativistic_generator_loss(real, fake)
    assert gradient(for_generator, fake) == pytest.approx([-s for s in sigmoid(real - fake)])
    for_discriminator = losses.relativistic_discriminator_loss(real, fake)
    assert gradient(for_discriminator, real) == pytest.approx([-s for s in sigmoid(fake - real)])


def test_relativistic_losses_see_only_differences() -> None:
    shifted = losses.relativistic_discriminator_loss(REAL + 7, FAKE + 7)
    torch.testing.assert_close(shifted, losses.relativistic_discriminator_loss(REAL, FAKE), atol=1e-5, rtol=1e-5)


def test_large_logits_neither_overflow_nor_lose_their_gradient() -> None:
    fake = torch.tensor([-1e4], requires_grad=True)
    loss = losses.logistic_generator_loss(fake)
    loss.sum().backward()
    assert loss.tolist() == [1e4] and fake.grad is not None and fake.grad.tolist() == [-1.0]


def test_half_precision_logits_give_losses_in_full_precision() -> None:
    assert losses.relativistic_generator_loss(REAL.bfloat16(), FAKE.bfloat16()).dtype == torch.float32


def test_logits_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="equal numbers; these are 3 and 2"):
        losses.relativistic_generator_loss(REAL, FAKE[:2])
    with pytest.raises(ValueError, match=r"\[N\] or \[N, 1\]; these have \[3, 3\]"):
        losses.logistic_generator_loss(REAL - FAKE[:, 0])
    with pytest.raises(ValueError, match=r"these have \[\]"):
        losses.logistic_generator_loss(REAL.mean())


def test_the_penalty_of_a_linear_discriminator_is_the_square_of_its_weights() -> None:
    weights = torch.randn(3 * 4 * 4, dtype=torch.float64)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    logits = images.flatten(1) @ weights
    expected = [float(weights.square().sum())] * 5
    assert losses.squared_gradient_norm(logits, images).tolist() == pytest.approx(expected)
    assert losses.gradient_penalty(logits, images, 3.0).tolist() == pytest.approx([1.5 * one for one in expected])
    assert losses.lazy_penalty(logits, images, 3.0, 16).tolist() == pytest.approx([24 * one for one in expected])


def test_the_penalty_of_a_quadratic_discriminator_differs_by_image_and_has_its_gradient() -> None:
    """D(x) = a·‖x‖²: ‖∇D‖² = 4a²‖x‖², and its derivative by a is 8a‖x‖²."""
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    images = torch.randn(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    norms = images.square().flatten(1).sum(1)
    penalty = losses.squared_gradient_norm(factor * norms, images)
    torch.testing.assert_close(penalty, 4 * 0.7**2 * norms)
    (by_factor,) = torch.autograd.grad(penalty.sum(), factor)
    assert float(by_factor) == pytest.approx(8 * 0.7 * float(norms.detach().sum()))


def critic() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.LazyLinear(1)).double()


@pytest.fixture
def drawn() -> Parameters:
    return AugmentPipe(EVERYTHING, p=1.0).draw(2, (8, 8), torch.Generator().manual_seed(5))


def test_the_penalty_through_augmentation_is_what_finite_differences_say(drawn: Parameters) -> None:
    """First derivative by each pixel before augmentation, and from it the penalty."""
    discriminator, step = critic(), 1e-5
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = losses.squared_gradient_norm(discriminator(augment(images, drawn)), images)
    slopes = torch.zeros(2, images[0].numel(), dtype=torch.float64)
    with torch.no_grad():
        for pixel in range(slopes.shape[1]):
            shift = torch.zeros_like(images)
            shift.view(2, -1)[:, pixel] = step
            up, down = (discriminator(augment(images + sign * shift, drawn)) for sign in (1, -1))
            slopes[:, pixel] = ((up - down) / (2 * step)).flatten()
    torch.testing.assert_close(found, slopes.square().sum(1), rtol=1e-7, atol=0)


def test_the_gradient_of_the_penalty_through_augmentation_is_what_finite_differences_say(drawn: Parameters) -> None:
    """Second derivative: by a few weights of the discriminator."""
    discriminator, step = critic(), 1e-5
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    discriminator(images)
    weight = discriminator[0].weight

    def penalty() -> Tensor:
        return losses.gradient_penalty(discriminator(augment(images, drawn)), images, 2.0).mean()

    (found,) = torch.autograd.grad(penalty(), weight)
    for index in ((0, 0, 0, 0), (1, 2, 1, 2), (3, 1, 2, 0)):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[index] += sign * step
            values.append(float(penalty().detach()))
            with torch.no_grad():
                weight[index] -= sign * step
        assert float(found[index]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_the_lazy_penalty_slows_adam_by_sixteen_seventeenths() -> None:
    learning_rate, betas = losses.lazy_adam(0.002, (0.0, 0.99), 16)
    assert learning_rate == pytest.approx(0.002 * 16 / 17)
    assert betas == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert losses.lazy_adam(0.002, (0.0, 0.99), 0) == (0.002, (0.0, 0.99))
    with pytest.raises(ValueError, match="-1 steps"):
        losses.lazy_adam(0.002, (0.0, 0.99), -1)


@pytest.mark.parametrize(("resolution", "gamma"), [(64, 0.125), (128, 0.5), (256, 2), (512, 8), (1024, 32)])
def test_gamma_grows_with_the_number_of_pixels(resolution: int, gamma: float) -> None:
    assert losses.default_gamma(resolution) == gamma
