"""GANs: whether their gradients and filters are right, what they cost on this CPU, and the one that ships."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from benchmarks import gan_designs, gan_gradients, gan_speed, gan_starter
from benchmarks.figures import ratio
from benchmarks.gan_case import AUGMENT_P, CPU_WIDTHS
from benchmarks.gan_designs import Amount, FilterCheck
from benchmarks.gan_gradients import Check
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from calotype.gan_description import ARCHITECTURES

#: Relative error of a slope by finite differences, in double precision.
WANTED_ERROR: Final = 1e-5
#: Half the spacing of fp32 numbers below 1: filters are designed in double precision and rounded once.
WANTED_DIFFERENCE: Final = 2.0**-25
#: Of the arithmetic from the published figures, relative.
WANTED_DEVIATION: Final = 0.02


def main(scale: Scale = Scale.STANDARD) -> Report:
    gradients = [check for name in ARCHITECTURES for check in gan_gradients.checks(name, scale.pick(2, None, None))]
    filters = gan_designs.filter_checks(scale.pick((64,), (64, 256, 1024), (64, 256, 1024)))
    amounts = gan_designs.amounts(scale.pick(("StyleGAN3-T 256",), gan_designs.EVERY, gan_designs.EVERY))
    speed = gan_speed.measured(scale)
    times, found = gan_starter.speeds(scale), gan_starter.quality(scale)
    return Report(
        title="GANs",
        method=_method(),
        tables=(
            _gradient_table(gradients),
            _filter_table(filters),
            _amount_table(amounts),
            *gan_speed.tables(speed),
            *gan_starter.tables(times, found),
        ),
        targets=(*_targets(gradients, filters, amounts, gan_speed.doubles(speed)), *gan_starter.targets(times, found)),
        notes=(gan_speed.circumstances(speed),),
    )


def _method() -> str:
    base, most = CPU_WIDTHS
    small = f"{gan_gradients.SIZE} pixels a side"
    return (
        f"Gradients: networks of {small}, {gan_gradients.CLASSES} classes, in double precision, with the losses of a "
        "training job, every augmentation on every image, and blur; each tensor of parameters is moved along its "
        "gradient and a random direction at once. R1 is of the images before augmentation, so that its gradient is a "
        "second derivative through it. Filters: those that networks carry, beside scipy.signal's designs. Time and "
        f"memory: channel_base {base} and channel_max {most}, else as jobs have it, fp32, augmentation at p = "
        f"{AUGMENT_P:g}; each in a process of its own, warmed up, medians, all kinds of calls in turns; memory is the "
        "most that was resident above what the process had before it built anything. R1 of StyleGAN3 is due every 16 "
        "steps, and spread over them. Without filters: the same network with leaky ReLUs at the rate of their pixels. "
        "The floor is the time that the arithmetic takes at the speed at which this machine multiplies matrices."
    )


def _gradient_table(checks: Sequence[Check]) -> Table:
    return Table(
        title="Gradients beside finite differences",
        columns=("architecture", "of", "tensors of parameters", "largest relative error"),
        rows=tuple((one.architecture, one.what, str(one.tensors), f"{one.error:.1e}") for one in checks),
    )


def _filter_table(checks: Sequence[FilterCheck]) -> Table:
    return Table(
        title="Filters beside SciPy's designs",
        columns=("network", "filters", "largest difference of a tap"),
        rows=tuple((one.network, str(one.filters), f"{one.largest_difference:.1e}") for one in checks),
    )


def _amount_table(amounts: Sequence[Amount]) -> Table:
    return Table(
        title="Arithmetic of an image",
        columns=("network", "published, TFLOP", "counted alike, TFLOP", "ratio", "computed here, TFLOP", "ratio"),
        rows=tuple(
            (
                one.network,
                f"{one.published / 1e12:.3f}",
                f"{one.dense / 1e12:.4f}",
                f"{one.dense / one.published:.4f}",
                f"{one.here / 1e12:.4f}",
                ratio(one.here / one.published),
            )
            for one in amounts
        ),
    )


def _targets(
    gradients: Sequence[Check], filters: Sequence[FilterCheck], amounts: Sequence[Amount], doubles: int
) -> tuple[Target, ...]:
    error = max(one.error for one in gradients)
    difference = max(one.largest_difference for one in filters)
    deviation = max(one.deviation for one in amounts)
    return (
        Target(
            what="gradients beside finite differences, R1 through augmentation included, largest relative error",
            wanted=f"≤ {WANTED_ERROR:.0e}",
            measured=f"{error:.1e}",
            met=error <= WANTED_ERROR,
        ),
        Target(
            what="taps of filters beside SciPy's designs, largest difference",
            wanted=f"≤ {WANTED_DIFFERENCE:.1e}",
            measured=f"{difference:.1e}",
            met=difference <= WANTED_DIFFERENCE,
        ),
        Target(
            what="arithmetic of StyleGAN3 beside the published figures, largest deviation",
            wanted=f"≤ {WANTED_DEVIATION:.0%}",
            measured=f"{deviation:.2%}",
            met=deviation <= WANTED_DEVIATION,
        ),
        Target(
            what="operations in double precision that nobody asked for, in training steps and in sampling",
            wanted="0",
            measured=str(doubles),
            met=doubles == 0,
        ),
    )
