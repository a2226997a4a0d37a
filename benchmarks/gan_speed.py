"""Time and memory of GANs in training and in sampling, each beside StyleGAN3-T of its size and beside a floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from benchmarks.children import answering
from benchmarks.figures import megabytes, ms, ratio
from benchmarks.gan_case import CPU_WIDTHS, Case, Found, What
from benchmarks.gan_counting import PRODUCT_SIDE
from benchmarks.results import Table
from benchmarks.scale import Scale
from calotype.gan_description import ARCHITECTURES

SAMPLING_BATCHES: Final = (1, 8)
#: Images of a training step: a group of StyleGAN3's discriminator.
STEP_BATCH: Final = 4
WHATS: Final[Mapping[What, tuple[int, ...]]] = {"sampling": SAMPLING_BATCHES, "training": (STEP_BATCH,)}
#: All others are compared with it.
REFERENCE: Final = "stylegan3-t"
#: For one measurement.
LONGEST_SECONDS: Final = 900.0

Measured = Mapping[Case, Found]


def measured(scale: Scale) -> Measured:
    """Each in a process of its own, one after the other."""
    with answering("benchmarks.gan_child", seconds=LONGEST_SECONDS) as ask:
        return {case: Found.read(ask(case.line())) for case in cases(scale)}


def cases(scale: Scale) -> list[Case]:
    widths = scale.pick((128, 8), CPU_WIDTHS, CPU_WIDTHS)
    # Calls of each kind in sampling and in training, by size: a step of 256 pixels takes as long as several of 64.
    rounds = scale.pick({16: (1, 1)}, {64: (5, 3), 256: (3, 2)}, {64: (25, 15), 256: (15, 10)})
    return [
        Case(architecture=architecture, resolution=size, what=what, batches=batches, rounds=times[which], widths=widths)
        for which, (what, batches) in enumerate(WHATS.items())
        for size, times in rounds.items()
        for architecture in ARCHITECTURES
    ]


def tables(found: Measured) -> tuple[Table, ...]:
    return _sampling_table(_of(found, "sampling")), _training_table(_of(found, "training"))


def doubles(found: Measured) -> int:
    """Operations in double precision that nobody asked for, in all of them."""
    return sum(len(one.doubles) for one in found.values())


def circumstances(found: Measured) -> str:
    """How fast the machine was meanwhile, for people."""
    speeds = sorted(one.machine / 1e9 for one in found.values())
    threads = max(one.threads for one in found.values())
    return (
        f"The floor is by the median product of two matrices of {PRODUCT_SIDE} × {PRODUCT_SIDE} numbers in fp32, timed "
        f"between the calls of each row, with {threads} threads: {speeds[0]:.0f} to {speeds[-1]:.0f} GFLOP/s. Where "
        "they lie far apart others were using the machine."
    )


def _of(found: Measured, what: What) -> Measured:
    return {case: one for case, one in found.items() if case.what == what}


def _sampling_table(found: Measured) -> Table:
    one, more = SAMPLING_BATCHES
    rows = []
    for case, its in found.items():
        base = _reference(found, case)
        bare = [ratio(its.seconds[batch] / its.unfiltered[batch]) if its.unfiltered else "–" for batch in (one, more)]
        rows.append(
            (
                case.architecture,
                str(case.resolution),
                ms(its.seconds[one]),
                ms(its.seconds[more]),
                ratio(its.seconds[one] / base.seconds[one]),
                ratio(its.seconds[more] / base.seconds[more]),
                *bare,
                f"{its.flops / 1e9:.2f}",
                ratio(its.seconds[more] / its.floor),
                megabytes(its.peak),
            )
        )
    return Table(
        title="Sampling, from seeds to RGB images; each column of two is for batch 1 and batch 8",
        columns=(
            "architecture",
            "size",
            "an image",
            "batch 8",
            f"ratio to {REFERENCE}",
            "batch 8",
            "ratio to the same without filters",
            "batch 8",
            "GFLOP an image",
            "ratio to the floor, batch 8",
            "peak memory",
        ),
        rows=tuple(rows),
    )


def _training_table(found: Measured) -> Table:
    rows = []
    for case, its in found.items():
        seconds, base = its.seconds[STEP_BATCH], _reference(found, case).seconds[STEP_BATCH]
        rows.append(
            (
                case.architecture,
                str(case.resolution),
                ms(seconds),
                ratio(seconds / base),
                f"{its.flops / 1e9:.2f}",
                ratio(seconds / its.floor),
                megabytes(its.peak),
            )
        )
    return Table(
        title=f"Training steps of {STEP_BATCH} images, both networks, penalties and running mean included",
        columns=(
            "architecture",
            "size",
            "an image",
            f"ratio to {REFERENCE}",
            "GFLOP an image",
            "ratio to the floor",
            "peak memory",
        ),
        rows=tuple(rows),
    )


def _reference(found: Measured, case: Case) -> Found:
    return next(
        its for other, its in found.items() if (other.architecture, other.resolution) == (REFERENCE, case.resolution)
    )
