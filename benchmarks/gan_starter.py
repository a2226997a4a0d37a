"""The starter GAN: how fast it is beside the starter diffusion model, and how good its images are."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import starter
from benchmarks.children import answering
from benchmarks.figures import ms, ratio
from benchmarks.results import Table, Target
from benchmarks.scale import Scale
from calotype.gan_description import FILE

BATCHES: Final = (1, 8)
#: Calls of the GAN beside each of the diffusion model, which takes much longer.
GAN_CALLS: Final = 10
#: For one line of a loop, the first of which loads a model.
LONGEST_SECONDS: Final = 300.0
WANTED_SECONDS: Final = 0.012
WANTED_DISTANCE: Final = 100.0
WANTED_COLOUR: Final = 0.85
GAN, DIFFUSION = "starter GAN", f"starter diffusion model, {starter.DIFFUSION_STEPS} steps"
ABSENT: Final = "not measured"

#: Seconds an image by way and batch size.
Speeds = Mapping[tuple[str, int], float]


def folder() -> Path:
    return starter.gan_dir()


def is_there() -> bool:
    """Whether a starter GAN ships with this checkout."""
    return (folder() / FILE).exists()


def speeds(scale: Scale) -> Speeds:
    """Medians over rounds in which both have their turn. Empty where there is no starter GAN."""
    if not is_there():
        return {}
    rounds, calls = scale.pick(1, 10, 40), scale.pick(1, GAN_CALLS, GAN_CALLS)
    taken: dict[tuple[str, int], list[float]] = {}
    with (
        answering("benchmarks.gan_loop", str(folder()), seconds=LONGEST_SECONDS) as gan,
        answering("benchmarks.bare_loop", seconds=LONGEST_SECONDS) as diffusion,
    ):
        ways: dict[str, tuple[Callable[[str], str], int]] = {GAN: (gan, calls), DIFFUSION: (diffusion, 1)}
        for number in range(rounds + 1):
            for name, (ask, count) in ways.items():
                for batch in BATCHES:
                    seconds = float(ask(f"{batch} {count}")) / (batch * count)
                    # The first round warms up.
                    if number:
                        taken.setdefault((name, batch), []).append(seconds)
    return {key: statistics.median(values) for key, values in taken.items()}


def quality(scale: Scale) -> Mapping[str, Any]:
    """What the recipe's own evaluation says. Empty where there is no starter GAN, and at the tiny scale: there is no
    smaller reference set that means something."""
    if not is_there() or scale is Scale.TINY:
        return {}
    command = [sys.executable, "-m", "starter.recipe.evaluate_gan", "--version", str(folder())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def tables(times: Speeds, found: Mapping[str, Any]) -> tuple[Table, ...]:
    return _speed_table(times), _quality_table(found)


def _speed_table(times: Speeds) -> Table:
    columns = [
        "way",
        *(f"an image, batch {batch}" for batch in BATCHES),
        *(f"ratio, batch {batch}" for batch in BATCHES),
    ]
    rows = []
    for name in (GAN, DIFFUSION):
        cells = [ms(times[name, batch]) if times else ABSENT for batch in BATCHES]
        cells += [ratio(times[name, batch] / times[GAN, batch]) if times else ABSENT for batch in BATCHES]
        rows.append((name, *cells))
    return Table(title="The starter GAN's time, from seeds to RGB images", columns=tuple(columns), rows=tuple(rows))


def _quality_table(found: Mapping[str, Any]) -> Table:
    columns = ("images", "FD-EfficientNet-lite0", "KID × 1000 (95 %)", "recall", "coverage", "colour as asked")
    row = (ABSENT,) * len(columns)
    if found:
        low, high = found["kid_1000_ci"]
        kid = f"{found['kid_1000']} ({low} to {high})"
        distance, colour = str(found["fd_efficientnet_lite0"]), f"{found['colour_rate']:.1%}"
        row = (str(found["n"]), distance, kid, str(found["recall"]), str(found["coverage"]), colour)
    return Table(title="The starter GAN's images beside held-out logos", columns=columns, rows=(row,))


def targets(times: Speeds, found: Mapping[str, Any]) -> tuple[Target, ...]:
    seconds = times.get((GAN, 1))
    distance, colour = found.get("fd_efficientnet_lite0"), found.get("colour_rate")
    return (
        Target(
            what="an image of the starter GAN at batch 1",
            wanted=f"≤ {ms(WANTED_SECONDS)}",
            measured=ABSENT if seconds is None else ms(seconds),
            met=None if seconds is None else seconds <= WANTED_SECONDS,
        ),
        Target(
            what="distance (FD-EfficientNet-lite0) of the starter GAN's images to held-out logos",
            wanted=f"≤ {WANTED_DISTANCE:g}",
            measured=ABSENT if distance is None else f"{distance:g}",
            met=None if distance is None else distance <= WANTED_DISTANCE,
        ),
        Target(
            what="images of the starter GAN whose first colour is the one asked for",
            wanted=f"≥ {WANTED_COLOUR:.0%}",
            measured=ABSENT if colour is None else f"{colour:.1%}",
            met=None if colour is None else colour >= WANTED_COLOUR,
        ),
    )
