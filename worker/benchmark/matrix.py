"""The decision matrix: a row for each thing that matters, a column for each contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from worker.benchmark.result import best_throughput

JsonObject = dict[str, Any]
Better = Literal["lower", "higher"]
#: A contender's value and what a reader should know about it.
Cell = tuple[float | None, str | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the matrix."""

    key: str
    label: str
    unit: str
    #: What it means, for somebody who decides.
    about: str
    better: Better
    #: The metric that must have been asked for.
    metric: str
    cell: Callable[[JsonObject], Cell]


def decision_matrix(contenders: Sequence[JsonObject], metrics: frozenset[str], backbone: str) -> JsonObject:
    """`rows` with key, label, unit, direction and meaning; `columns` with a value or null a row, and notes in words.

    A row is there when its metric was asked for and at least one contender has a value or a note for it.
    """
    rows = [row for row in _rows(backbone) if row.metric in metrics]
    cells = {row.key: [_cell(row, contender) for contender in contenders] for row in rows}
    shown = [row for row in rows if any(value is not None or note for value, note in cells[row.key])]
    columns = [
        {
            "name": contender["name"],
            "status": contender["status"],
            "values": {row.key: cells[row.key][position][0] for row in shown},
            "notes": {row.key: note for row in shown if (note := cells[row.key][position][1])},
        }
        for position, contender in enumerate(contenders)
    ]
    heads = [
        {"key": row.key, "label": row.label, "unit": row.unit, "better": row.better, "about": row.about}
        for row in shown
    ]
    return {"rows": heads, "columns": columns}


def _cell(row: Row, contender: JsonObject) -> Cell:
    return (None, None) if contender["status"] == "failed" else row.cell(contender)


def _rows(backbone: str) -> list[Row]:
    return [
        Row(
            key="fd",
            label=f"FD-{backbone}",
            unit="",
            about="Distance to the real images; biased upwards by few samples",
            better="lower",
            metric="fd",
            cell=_fd,
        ),
        Row(
            key="kid",
            label=f"KID-{backbone}",
            unit="",
            about="Distance to the real images without that bias; 0: alike",
            better="lower",
            metric="kid",
            cell=_kid,
        ),
        *(_latency_row(quantile, about) for quantile, about in _QUANTILES.items()),
        *_OTHER_ROWS,
    ]


def _latency_row(quantile: str, about: str) -> Row:
    return Row(
        key=f"latency_{quantile}_seconds",
        label=f"Latency {quantile}",
        unit="s",
        about=about,
        better="lower",
        metric="latency",
        cell=_percentile(quantile),
    )


def _fd(contender: JsonObject) -> Cell:
    fd = contender["fd"]
    return (fd["value"], f"N = {fd['n_generated']} against {fd['n_real']}") if fd else (None, None)


def _kid(contender: JsonObject) -> Cell:
    kid = contender["kid"]
    if not kid:
        return None, None
    if kid["ci_low"] is None:
        return kid["value"], "too few samples for an interval"
    return kid["value"], f"95 %: {kid['ci_low']:.3g} to {kid['ci_high']:.3g}"


def _percentile(quantile: str) -> Callable[[JsonObject], Cell]:
    """Of the smallest batch size: what a single request waits for."""

    def cell(contender: JsonObject) -> Cell:
        if not contender["latency"]:
            return None, None
        batch = contender["latency"][0]
        size = f"batch size {batch['batch_size']}"
        if batch["status"] == "failed":
            return None, f"{size} failed"
        if batch["status"] == "below_floor":
            return None, f"{size}: measuring error, below the arithmetic floor"
        if quantile == "p99" and batch["p99_is_estimate"]:
            return batch[quantile], f"{size}, estimate from {batch['calls']} calls"
        return batch[quantile], f"{size}, {batch['calls']} calls"

    return cell


def _throughput(contender: JsonObject) -> Cell:
    best = best_throughput(contender["latency"])
    return (best["images_per_second"], f"at batch size {best['batch_size']}") if best else (None, None)


def _cold(contender: JsonObject) -> Cell:
    load, first = contender["load_seconds"], contender["first_image_seconds"]
    return round(load + first, 4), f"load {load:.3g} s + first image {first:.3g} s"


def _memory(contender: JsonObject) -> Cell:
    memory = contender["memory"]
    if not memory or memory["peak_bytes"] is None:
        return None, None
    return round(memory["peak_bytes"] / 1e6, 1), MEMORY_KINDS[memory["kind"]]


def _cost(contender: JsonObject) -> Cell:
    return contender["cost_per_million_usd"], None


MEMORY_KINDS: Final = {
    "cuda_allocated": "allocated by tensors on the GPU",
    "process_rss": "gained by the process (resident)",
    "process_rss_lifetime": "gained by the process since it started: a lower bound",
}

_QUANTILES: Final = {
    "p50": "Half of all calls are faster",
    "p95": "19 of 20 calls are faster",
    "p99": "99 of 100 calls are faster",
}

_OTHER_ROWS: Final = (
    Row(
        key="images_per_second",
        label="Throughput",
        unit="images/s",
        about="At the batch size that gives most",
        better="higher",
        metric="throughput",
        cell=_throughput,
    ),
    Row(
        key="cold_start_seconds",
        label="Cold start",
        unit="s",
        about="From files on disk to the first image",
        better="lower",
        metric="latency",
        cell=_cold,
    ),
    Row(
        key="peak_memory_mb",
        label="Peak memory",
        unit="MB",
        about="Weights and work, at the largest batch size",
        better="lower",
        metric="memory",
        cell=_memory,
    ),
    Row(
        key="cost_per_million_usd",
        label="A million images",
        unit="USD",
        about="At that throughput, without idle time",
        better="lower",
        metric="throughput",
        cell=_cost,
    ),
)
