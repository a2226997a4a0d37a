"""How good the starter's images are: distances to held-out logos beside the floor, blur and noise. Takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.figures import ratio
from benchmarks.results import Report, Table
from benchmarks.scale import Scale

Row = Mapping[str, Any]


def main(scale: Scale = Scale.STANDARD) -> Report:
    # What it takes is decided by the size of the reference set; there is no smaller one that means something.
    command = [sys.executable, "-m", "starter.recipe.evaluate", "--references"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    floor = rows[0]["fd_efficientnet_lite0"]
    return Report(
        title="Quality of the starter model",
        method="Distances of image sets to logos that were held out from training, by the features of EfficientNet-"
        "lite0 (not FID: another network). The first set, other real logos, is the floor; the last the starter's own.",
        tables=(
            Table(
                title="Distances to held-out logos",
                columns=("set", "FD-EfficientNet-lite0", "KID × 1000", "colour as asked", "ratio to the floor"),
                rows=tuple(_cells(row, floor) for row in rows),
            ),
        ),
    )


def _cells(row: Row, floor: float) -> tuple[str, ...]:
    distance = row["fd_efficientnet_lite0"]
    colour = f"{row['colour_rate']:.1%}" if "colour_rate" in row else "–"
    return row["set"], str(distance), str(row["kid_1000"]), colour, ratio(distance / floor)
