"""The controllers of augmentation, and ramps."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from worker.families.gan.ada import (
    RESUME_SPEED_KIMG,
    AdaptiveController,
    Controller,
    ScheduledController,
    signs,
)
from worker.families.gan.schedule import Ramp

OVERFITTED, FOOLED = torch.ones(32), -torch.ones(32)


def run(controller: Controller, batches: int, observed: Tensor) -> list[float]:
    found = []
    for _ in range(batches):
        controller.observe(observed)
        found.append(controller.end_batch())
    return found


def test_p_moves_every_fourth_batch_by_its_step() -> None:
    step = 4 * 32 / 500_000
    found = run(AdaptiveController(32), 9, OVERFITTED)
    assert found == pytest.approx([0, 0, 0, step, step, step, step, 2 * step, 2 * step])


def test_p_would_cross_from_0_to_1_in_500_thousand_images_and_in_100_when_resuming() -> None:
    assert run(AdaptiveController(500), 1000, OVERFITTED)[-1] == pytest.approx(1.0)
    assert run(AdaptiveController(500), 996, OVERFITTED)[-1] < 0.9999
    fast = AdaptiveController(500, speed_kimg=RESUME_SPEED_KIMG)
    assert run(fast, 200, OVERFITTED)[-1] == pytest.approx(1.0)


def test_p_stays_within_0_and_1() -> None:
    assert run(AdaptiveController(32, p=0.0001), 4, FOOLED)[-1] == 0.0
    assert run(AdaptiveController(32, p=0.9999), 4, OVERFITTED)[-1] == 1.0


@pytest.mark.parametrize(("positive", "direction"), [(81, 1), (80, 0), (79, -1)])
def test_the_target_is_a_mean_sign_of_six_tenths(positive: int, direction: int) -> None:
    """80 of 100 positive and the rest negative have a mean of 0.6."""
    observed = torch.tensor([1.0] * positive + [-1.0] * (100 - positive))
    controller = AdaptiveController(100, p=0.5)
    step = run(controller, 4, observed)[-1] - 0.5
    assert step == pytest.approx(direction * 4 * 100 / 500_000)
    assert controller.heuristic == pytest.approx((2 * positive - 100) / 100)


def test_the_mean_is_over_the_four_batches_and_no_older_ones() -> None:
    controller = AdaptiveController(32, p=0.5)
    run(controller, 4, FOOLED)
    run(controller, 3, OVERFITTED)
    run(controller, 1, FOOLED)
    assert controller.heuristic == pytest.approx(0.5)


def test_parts_of_a_batch_count_as_one_batch() -> None:
    whole, parted = AdaptiveController(32), AdaptiveController(32)
    for _ in range(4):
        whole.observe(torch.cat([torch.ones(30), -torch.ones(2)]))
        whole.end_batch()
        for part in (torch.ones(16), torch.cat([torch.ones(14), -torch.ones(2)])):
            parted.observe(part)
        parted.end_batch()
    assert whole.state_dict() == parted.state_dict() and whole.p > 0


def test_what_other_processes_saw_counts_too() -> None:
    others = torch.tensor([-300.0, 300.0], dtype=torch.float64)
    controller = AdaptiveController(32, p=0.5, reduce=lambda total: total + others)
    assert run(controller, 4, OVERFITTED)[-1] < 0.5
    assert controller.heuristic == pytest.approx((128 - 300) / 428)


def test_signs_are_of_real_logits_or_of_their_difference_to_the_fakes() -> None:
    real, fake = torch.tensor([[2.0], [-1.0], [0.0], [3.0]]), torch.tensor([[3.0], [-2.0], [0.0], [1.0]])
    assert signs(real).tolist() == [1, -1, 0, 1]
    assert signs(real, fake).tolist() == [-1, 1, 0, 1]
    assert not signs(real.requires_grad_(), fake).requires_grad


@pytest.mark.parametrize("batches", [5, 6, 8])
def test_a_resumed_controller_goes_on_as_if_nothing_had_been(batches: int) -> None:
    torch.manual_seed(4)
    observed = [torch.sign(torch.randn(32) + 0.8) for _ in range(40)]

    def feed(controller: Controller, part: list[Tensor]) -> list[float]:
        return [p for one in part for p in run(controller, 1, one)]

    undisturbed, first, second = AdaptiveController(32), AdaptiveController(32), AdaptiveController(32)
    expected = feed(undisturbed, observed)
    feed(first, observed[:batches])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert feed(second, observed[batches:]) == expected[batches:]
    assert second.state_dict() == undisturbed.state_dict()


def test_a_resumed_controller_remembers_the_batches_since_the_last_adjustment() -> None:
    first, second = AdaptiveController(32, p=0.5), AdaptiveController(32)
    run(first, 2, FOOLED)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert run(second, 2, OVERFITTED)[-1] < 0.5
    assert second.heuristic == 0


def test_what_cannot_be_is_refused() -> None:
    blind = AdaptiveController(32)
    for _ in range(3):
        blind.end_batch()
    with pytest.raises(ValueError, match="no signs were observed in 4 batches"):
        blind.end_batch()
    with pytest.raises(ValueError, match=r"is 1\.5; it must lie"):
        AdaptiveController(32, p=1.5)
    with pytest.raises(ValueError, match="is nan"):
        AdaptiveController(32, p=math.nan)
    with pytest.raises(ValueError, match="must be positive"):
        AdaptiveController(0)
    with pytest.raises(ValueError, match="must be positive"):
        AdaptiveController(32, speed_kimg=0)
    with pytest.raises(ValueError, match=r"is 1\.1"):
        ScheduledController(32, Ramp(start=0, end=1.1, kimg=1))
    with pytest.raises(ValueError, match="shape"):
        Ramp(start=0, end=1, kimg=1, shape="steps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="-1"):
        Ramp(start=0, end=1, kimg=-1)


def test_ramps_go_straight_or_along_half_a_cosine_and_then_stay() -> None:
    linear, cosine = (Ramp(start=150, end=15, kimg=10, shape=shape) for shape in ("linear", "cosine"))
    assert [linear.at(images) for images in (0, 2500, 10_000, 99_000)] == pytest.approx([150, 116.25, 15, 15])
    quarter = 150 - 135 * (1 - math.cos(math.pi / 4)) / 2
    assert [cosine.at(images) for images in (0, 2500, 5000, 99_000)] == pytest.approx([150, quarter, 82.5, 15])
    assert Ramp(start=1, end=2, kimg=0).at(0) == 2


def test_a_schedule_follows_the_images_whatever_the_logits_say() -> None:
    ramp = Ramp(start=0, end=0.3, kimg=1, shape="linear")
    for observed in (OVERFITTED, FOOLED):
        controller = ScheduledController(100, ramp)
        assert controller.p == 0
        assert run(controller, 12, observed) == pytest.approx([*(0.03 * batch for batch in range(1, 11)), 0.3, 0.3])


def test_a_resumed_schedule_goes_on() -> None:
    ramp = Ramp(start=0, end=0.3, kimg=1)
    first, second = ScheduledController(100, ramp), ScheduledController(100, ramp)
    run(first, 4, FOOLED)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.p == first.p
    assert run(second, 3, FOOLED) == run(first, 3, FOOLED)
