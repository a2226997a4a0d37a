"""The report's charts, each a PNG. Drawn without pyplot: it keeps global state that threads would share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

JsonObject = dict[str, Any]

#: Okabe and Ito's colours, which people with colour blindness can tell apart; in the order of the contenders.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")

_DPI: Final = 160


def colour_of(position: int) -> str:
    """The colour of the contender at that position."""
    return COLOURS[position % len(COLOURS)]


def speed_chart(contenders: Sequence[JsonObject]) -> bytes:
    """Latency and throughput by batch size; batch sizes without a trusted measurement are left out."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = sorted({batch["batch_size"] for contender in contenders for batch in _trusted(contender)})
    width = 0.8 / len(contenders)
    for position, contender in enumerate(contenders):
        colour = colour_of(position)
        for batch in _trusted(contender):
            at = sizes.index(batch["batch_size"]) + (position - (len(contenders) - 1) / 2) * width
            above = max(0.0, batch["p95"] - batch["p50"])
            left.bar(at, batch["p50"], width * 0.92, color=colour, yerr=[[0.0], [above]], capsize=3, ecolor="#444444")
            right.bar(at, batch["images_per_second"], width * 0.92, color=colour)
    for axes in (left, right):
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_xlabel("images in a call (batch size)")
        _plain(axes, "y")
    left.set_title("Latency of a call, median to p95 (lower is better)", fontsize=10, loc="left")
    left.set_ylabel("seconds")
    right.set_title("Throughput (higher is better)", fontsize=10, loc="left")
    right.set_ylabel("images a second")
    return _png(figure)


def quality_chart(contenders: Sequence[JsonObject]) -> bytes:
    """KID with its interval and the Fréchet distance, as far as they were measured."""
    keys = [key for key in ("kid", "fd") if any(contender[key] for contender in contenders)]
    figure = Figure(figsize=(9.6, 1.2 + 0.5 * len(contenders)), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
        scored = [(position, c) for position, c in enumerate(contenders) if c[key]]
        for position, contender in scored:
            score = contender[key]
            axes.barh(position, score["value"], 0.6, color=colour_of(position))
            if key == "kid" and score["ci_low"] is not None:
                reach = [[score["value"] - score["ci_low"]], [score["ci_high"] - score["value"]]]
                axes.errorbar(score["value"], position, xerr=reach, color="#444444", capsize=3, fmt="none")
        axes.set_yticks([position for position, _ in scored], [contender["name"] for _, contender in scored])
        axes.invert_yaxis()
        axes.axvline(0.0, color="#444444", linewidth=0.8)
        name = scored[0][1][key]["name"]
        interval = ", with its 95 % interval" if key == "kid" else ""
        axes.set_title(f"{name}{interval}", fontsize=10, loc="left")
        axes.set_xlabel("lower is better")
        _plain(axes, "x")
    return _png(figure)


def tradeoff_chart(contenders: Sequence[JsonObject]) -> bytes | None:
    """KID over median latency at the smallest batch size; None when fewer than two contenders have both."""
    points = [
        (position, contender, _trusted(contender)[0])
        for position, contender in enumerate(contenders)
        if contender["kid"] and _trusted(contender)
    ]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for position, contender, batch in points:
        kid, colour = contender["kid"], colour_of(position)
        if kid["ci_low"] is not None:
            axes.vlines(batch["p50"], kid["ci_low"], kid["ci_high"], color=colour, linewidth=1.5, alpha=0.6)
        axes.plot(batch["p50"], kid["value"], "o", color=colour, markersize=9)
        at = (batch["p50"], kid["value"])
        left = batch["p50"] > 0.5 * max(other["p50"] for _, _, other in points)
        axes.annotate(
            contender["name"],
            at,
            xytext=(-9 if left else 9, 6),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
        )
    axes.margins(x=0.15, y=0.15)
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(f"seconds a call at batch size {points[0][2]['batch_size']} (median)")
    axes.set_ylabel(points[0][1]["kid"]["name"])
    axes.set_title("Better: down and to the left", fontsize=10, loc="left")
    _plain(axes, "both")
    return _png(figure)


def _trusted(contender: JsonObject) -> list[JsonObject]:
    return [batch for batch in contender["latency"] if batch["status"] == "measured"]


def _plain(axes: Axes, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=_DPI)
    return data.getvalue()
