"""What a training's result shows over time: the losses and the Fréchet distance."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worker.benchmark.plots import COLOURS

#: The loss curve in the result has at most this many points.
_POINTS: Final = 400
_LINE, _BEST, _STOP = COLOURS[0], COLOURS[2], COLOURS[1]


def loss_curve(losses: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Mean losses of both networks over equal stretches: at most 400 points, each with its stretch's last step."""
    steps = len(losses["generator"])
    width = max(1, -(-steps // _POINTS))
    curve = []
    for start in range(0, steps, width):
        stretch = slice(start, start + width)
        means = {name: _mean(losses[name][stretch]) for name in ("generator", "discriminator")}
        curve.append({"step": min(steps, start + width), **means})
    return curve


def frechet_chart(curve: Sequence[Mapping[str, Any]], *, metric: str, best_step: int, stopped_at: int | None) -> bytes:
    """A PNG of the distance at each snapshot (`step`, `value`); marks the one that was kept, and an early end.

    Raises ValueError when there is no snapshot.
    """
    if not curve:
        raise ValueError("no snapshot was taken: there is no curve to draw")
    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([one["step"] for one in curve], [one["value"] for one in curve], color=_LINE, marker=".")
    best = next(one for one in curve if one["step"] == best_step)
    axes.plot([best_step], [best["value"]], "o", color=_BEST, markersize=8, label="the snapshot that was kept")
    if stopped_at is not None:
        axes.axvline(stopped_at, color=_STOP, linewidth=1.0, label="stopped early")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("training step")
    axes.set_title(
        f"{metric} of the generated images to the training images (lower is better)", fontsize=10, loc="left"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160)
    return data.getvalue()


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 6)
