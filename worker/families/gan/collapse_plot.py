"""The curve of the mode-collapse watch as a PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worker.benchmark.plots import COLOURS

JsonObject = Mapping[str, Any]


class _Panel(NamedTuple):
    key: str
    title: str
    #: The key of the real sample's own number.
    real: str
    #: Whether the number lies between 0 and 1.
    is_share: bool


#: In the order in which a reader should look.
_PANELS: Final = (
    _Panel("vendi", "Vendi score: different images (higher is better)", "real_vendi", False),
    _Panel("duplicates", "Share with a near-copy (lower is better)", "real_duplicates", True),
    _Panel("cosine", "Mean cosine from the real mean (lower is better)", "real_cosine", False),
    _Panel("recall", "Recall of the real images (higher is better)", "real_recall", True),
)
_GENERATED, _REAL, _ALARM = COLOURS[0], COLOURS[7], COLOURS[1]


def collapse_chart(checks: Sequence[JsonObject]) -> bytes:
    """Four numbers over the steps beside the real sample's own; what looked collapsed, and where the watch acted.

    `checks` are those of `worker.families.gan.collapse.CollapseWatch.result`. Raises ValueError when there are none.
    """
    if not checks:
        raise ValueError("the watch has not looked yet: there is no curve to draw")
    figure = Figure(figsize=(9.6, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    for axes, panel in zip(grid.flat, _PANELS, strict=True):
        _draw(axes, panel, checks)
    for axes in grid[1]:
        axes.set_xlabel("training step")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160)
    return data.getvalue()


def _draw(axes: Axes, panel: _Panel, checks: Sequence[JsonObject]) -> None:
    steps = [check["step"] for check in checks]
    axes.plot(
        steps, [check[panel.real] for check in checks], color=_REAL, linewidth=1.5, linestyle="--", label="real images"
    )
    axes.plot(steps, [check[panel.key] for check in checks], color=_GENERATED, marker=".", label="generated images")
    suspicious = [check for check in checks if check["suspicious"]]
    at, values = [check["step"] for check in suspicious], [check[panel.key] for check in suspicious]
    axes.plot(at, values, "o", color=_ALARM, markersize=5, label="looks collapsed")
    for check in checks:
        if check["action"] is not None:
            axes.axvline(check["step"], color=_ALARM, linewidth=1.0)
    axes.plot([], [], color=_ALARM, linewidth=1.0, label="the watch acted")
    axes.set_title(panel.title, fontsize=10, loc="left")
    if panel.is_share:
        axes.set_ylim(-0.03, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
