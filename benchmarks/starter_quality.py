"""How good the starter's images are: distances to held-out logos beside the floor, blur and noise. Takes minutes."""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> None:
    command = [sys.executable, "-m", "starter.recipe.evaluate", "--references"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for row in rows:
        colour = f"  colour {row['colour_rate']:.1%}" if "colour_rate" in row else ""
        print(f"{row['set']:<32} FD {row['fd_efficientnet_lite0']:>6}  KID x 1000 {row['kid_1000']:>6}{colour}")
    starter, floor = rows[-1]["fd_efficientnet_lite0"], rows[0]["fd_efficientnet_lite0"]
    blurred = next(row["fd_efficientnet_lite0"] for row in rows if "sigma 4" in row["set"])
    print(f"ratio to the floor: {starter / floor:.2f}; to logos blurred at sigma 4: {starter / blurred:.2f}")
