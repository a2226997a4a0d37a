"""`calotype simulate`: what a trace of jobs would go through, without a database or device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.console import out, print_json
from calotype.cli.render import table

Json = Mapping[str, Any]


def simulate(
    trace: Annotated[
        Path | None,
        typer.Argument(
            help="JSON lines of tenants, workers and jobs; the shipped example when not given.",
            exists=True,
            dir_okay=False,
            readable=True,
            show_default=False,
        ),
    ] = None,
    compare: Annotated[str | None, typer.Option(help="Beside it, the same jobs by another rule: fifo.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="So many workers instead of those of the trace.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Units that one call takes; 1: no batches.")] = 16,
    affinity_seconds: Annotated[float, typer.Option(min=0, help="How long a loaded model may go first.")] = 30.0,
    affinity_streak: Annotated[int, typer.Option(min=0, help="How often in a row; 0: never.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Play a trace of jobs by the queue's own rules: waits, fairness, model loads, use of the devices."""
    from calotype import simulation

    if compare not in (None, "fifo"):
        raise typer.BadParameter(f"{compare!r} is not known; the only one is fifo", param_hint="--compare")
    given = simulation.read_trace(trace or simulation.EXAMPLE)
    given = given if workers is None else simulation.with_workers(given, workers)
    policies: dict[str, simulation.Policy] = {"fair": simulation.FairShare(most_units=max_batch)}
    if compare == "fifo":
        policies["fifo"] = simulation.Fifo()
    reports = {}
    for name, policy in policies.items():
        options = simulation.Options(policy=policy, affinity_seconds=affinity_seconds, affinity_streak=affinity_streak)
        reports[name] = simulation.report(simulation.simulate(given, options))
    if as_json:
        print_json(reports if compare else reports["fair"])
    else:
        _show(reports)


WAITS = ("jobs of", "rule", "jobs", "p50", "p95", "p99", "max")
FAIRNESS = ("pool", "rule", "index", "tenant", "weight", "GPU-s", "GPU-s/weight", "had", "fair part", "most lag, s")
DEVICES = ("rule", "devices", "in use", "computing", "model loads", "calls", "jobs a call", "makespan, h", "ended")


def _show(reports: Mapping[str, Json]) -> None:
    console = out()
    console.print("[bold]Waits[/] until the first start, seconds")
    console.print(table(WAITS, _waits(reports), "no jobs"))
    console.print("\n[bold]Fairness[/] while device time was short (index: 1 when everybody had the fair part)")
    console.print(table(FAIRNESS, _fairness(reports), "no tenants"))
    console.print("\n[bold]Devices[/]")
    console.print(table(DEVICES, _devices(reports), "no devices"))


def _waits(reports: Mapping[str, Json]) -> Iterator[tuple[Any, ...]]:
    groups = [("all", "")]
    first = next(iter(reports.values()))["waits"]
    groups += [(by, name) for by in ("tenant", "priority", "queue") for name in first[f"by_{by}"]]
    for by, name in groups:
        for rule, found in reports.items():
            waits = found["waits"]["all"] if by == "all" else found["waits"][f"by_{by}"][name]
            figures = (_seconds(waits[part]) for part in ("p50", "p95", "p99", "max"))
            yield (f"{by} {name}".strip(), rule, waits["jobs"], *figures)


def _fairness(reports: Mapping[str, Json]) -> Iterator[tuple[Any, ...]]:
    for rule, found in reports.items():
        for pool, fairness in found["fairness"].items():
            for name, tenant in fairness["tenants"].items():
                figures = ("gpu_seconds", "gpu_seconds_over_weight", "gpu_seconds_while_short", "fair_while_short")
                numbers = (_seconds(tenant[figure]) for figure in (*figures, "max_lag_seconds"))
                yield (pool, rule, fairness["jain_index"], name, f"{tenant['weight']:g}", *numbers)


def _devices(reports: Mapping[str, Json]) -> Iterator[tuple[Any, ...]]:
    for rule, found in reports.items():
        devices, batches = found["devices"], found["batches"]
        ended = [f"{count} {state}" for state, count in found["jobs"].items() if state != "submitted"]
        shares = (_percent(devices[part]) for part in ("utilisation", "computing"))
        hours = f"{found['makespan_seconds'] / 3600:.1f}"
        loads = devices["model_loads"]
        yield (rule, devices["count"], *shares, loads, batches["calls"], batches["mean_jobs"], hours, ended)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
