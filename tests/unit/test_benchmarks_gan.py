"""The measurement of GANs: that it would notice what it is there to notice."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from benchmarks import gan, gan_designs, gan_starter
from benchmarks.children import answering
from benchmarks.gan_case import Case, Found
from benchmarks.gan_counting import DoublePrecision, count_flops
from benchmarks.gan_gradients import relative_errors
from benchmarks.gan_measuring import measure, spread
from benchmarks.scale import Scale
from worker.families.gan.augment import AugmentPipe
from worker.families.gan.augment.warp import warp
from worker.families.gan.networks import synthesis_layer

TINY = Case(
    architecture="stylegan3-t", resolution=16, what="sampling", batches=(1, 2), rounds=1, widths=(128, 8)
)  # fmt: skip


class Bent(torch.autograd.Function):
    """x, with a derivative that is wrong at right angles to the gradient of the sum of squares of (1, 0)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient + torch.tensor([0.0, 1e-3], dtype=gradient.dtype)


def test_a_gradient_that_is_right_has_no_error() -> None:
    x = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert relative_errors(lambda: x.square().sum() + x.prod(), [x])[0] < 1e-9


def test_a_gradient_that_is_wrong_at_right_angles_to_itself_is_noticed() -> None:
    x = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    assert relative_errors(lambda: Bent.apply(x).square().sum(), [x])[0] > 1e-5


def test_a_gradient_that_is_missing_is_noticed_and_parameters_are_put_back() -> None:
    x, y = (torch.tensor([1.0], dtype=torch.float64, requires_grad=True) for _ in range(2))
    errors = relative_errors(lambda: (x.square() + y.detach().square()).sum(), [x, y])
    assert errors[0] < 1e-9 and errors[1] > 0.1
    assert (x.item(), y.item()) == (1.0, 1.0)


def test_filters_of_another_design_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    design = synthesis_layer.lowpass_filter

    def wider(*args: Any, cutoff: float, **kwargs: Any) -> Tensor:
        return design(*args, cutoff=cutoff * (1 + 1e-6), **kwargs)

    before = [check.largest_difference for check in gan_designs.filter_checks((64,))]
    monkeypatch.setattr(synthesis_layer, "lowpass_filter", wider)
    after = [check.largest_difference for check in gan_designs.filter_checks((64,))]
    assert max(before) < gan.WANTED_DIFFERENCE < min(after)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_both_gradients_of_a_convolution_take_as_many_operations_as_it_does(groups: int, *, transposed: bool) -> None:
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 8 // groups, 3, 3, requires_grad=True)
    convolution = functional.conv_transpose2d if transposed else functional.conv2d
    places = 36 if transposed else 16
    forward = 2 * 2 * places * 8 * (8 // groups) * 9
    assert count_flops(lambda: convolution(x, weight, groups=groups)) == forward
    assert count_flops(lambda: convolution(x, weight, groups=groups).sum().backward()) == 3 * forward


def test_double_precision_is_noted_where_nobody_asked_for_it() -> None:
    x = torch.randn(3, requires_grad=True)
    with DoublePrecision(1) as precision:
        (x * 2).sum().backward()
    assert precision.accidental == []
    with DoublePrecision(1) as precision:
        x.double().sum().backward()
    assert {"aten._to_copy.default", "aten.sum.default"} <= set(precision.accidental)


def test_what_augmentation_draws_may_be_exact_but_images_may_not() -> None:
    pipe, random = AugmentPipe(p=1.0), torch.Generator().manual_seed(0)
    with DoublePrecision(2) as precision:
        drawn = pipe.draw(2, (16, 16), random)
        warp(torch.rand(2, 3, 16, 16), drawn.geometry)
    assert precision.accidental == []
    with DoublePrecision(2) as precision:
        warp(torch.rand(2, 3, 16, 16, dtype=torch.float64), drawn.geometry)
    assert precision.accidental


@pytest.mark.parametrize("architecture", ["stylegan3-t", "stylegan3-r"])
def test_a_network_is_measured_with_its_filters_and_without(architecture: Any) -> None:
    found = measure(dataclasses.replace(TINY, architecture=architecture, resolution=64))
    assert found.unfiltered.keys() == found.seconds.keys() == {1, 2}
    assert found.flops > 1e6 and found.peak > 0 and found.doubles == ()


def test_a_penalty_that_is_due_every_16_steps_counts_a_sixteenth() -> None:
    assert spread({1: 17.0, 0: 1.0}, 16) == 2.0
    assert spread({1: 5.0}, 1) == 5.0


def test_cases_and_what_was_found_survive_their_way_between_processes() -> None:
    found = Found(
        seconds={1: 0.5}, unfiltered={8: 0.25}, flops=3e9, machine=6e9, peak=7, doubles=("aten.add",), threads=2
    )
    assert Case.read(TINY.line()) == TINY
    assert Found.read(found.line()) == found
    assert found.floor == 0.5


def test_what_cannot_be_measured_is_an_error_and_no_endless_wait() -> None:
    broken = json.dumps({**json.loads(TINY.line()), "resolution": 24})
    with answering("benchmarks.gan_child", seconds=300) as ask, pytest.raises(RuntimeError, match="ended instead"):
        ask(broken)


@pytest.mark.timeout(600)
def test_everything_is_measured_but_the_starter_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_starter, "folder", lambda: tmp_path)
    report = gan.main(Scale.TINY)
    assert [target.verdict for target in report.targets] == ["met"] * 4 + ["not measured"] * 3
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    assert [len(table.rows) for table in report.tables] == [9, 2, 1, 3, 3, 2, 1]


@pytest.mark.parametrize(("milliseconds", "distance", "colour"), [(12, 100, 0.85), (13, 101, 0.84)])
def test_the_starter_is_judged_by_its_targets(milliseconds: float, distance: float, colour: float) -> None:
    times = {
        (name, batch): milliseconds / 1000 for name in (gan_starter.GAN, gan_starter.DIFFUSION) for batch in (1, 8)
    }
    found = {
        "n": 922, "fd_efficientnet_lite0": distance, "kid_1000": 60.1, "kid_1000_ci": [58.0, 62.2], "recall": 0.2,
        "coverage": 0.3, "colour_rate": colour,
    }  # fmt: skip
    assert [target.met for target in gan_starter.targets(times, found)] == [milliseconds == 12] * 3
    speed, quality = gan_starter.tables(times, found)
    assert speed.rows[1][-1] == "1.00"
    assert quality.rows == (("922", str(distance), "60.1 (58.0 to 62.2)", "0.2", "0.3", f"{colour:.1%}"),)
