"""docs/performance.md, written from the newest run of each measurement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.results import Report, Run, Table, Target
from benchmarks.scale import Scale

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
#: Where runs are kept between `python -m benchmarks NAME` and `python -m benchmarks --page`; git ignores it.
RUNS = ROOT / "build" / "benchmarks"

HEAD = """# Performance

Written by `make bench` (`python -m benchmarks`); not to be edited by hand. The queue is measured on real services
on loopback: a durable Postgres, Redis and an S3 endpoint, all on the machine that also runs the clients; models alone
are measured without them. Absolute times
say something about that machine; the ratios within a table come from one run, side by side, and say something about the
code. The baseline is a plain Flask, Celery and SQLAlchemy service with the same server settings, in
`benchmarks/baseline/`; the second peer is procrastinate on the same Postgres.
"""


def stored_runs(order: Iterable[str]) -> list[Run]:
    """The newest run of each measurement that has one, in ``order``."""
    return [Run.load(path) for name in order if (path := RUNS / f"{name}.json").exists()]


def write(runs: Sequence[Run], path: Path = PAGE) -> None:
    path.write_text(render(runs), encoding="utf-8")


def render(runs: Sequence[Run]) -> str:
    """The page as Markdown."""
    parts = [HEAD, _summary(runs), *(_section(run) for run in runs)]
    return "\n".join(parts)


def _summary(runs: Sequence[Run]) -> str:
    rows = [
        (run.report.title, target.what, target.wanted, target.measured, target.verdict)
        for run in runs
        for target in run.report.targets
    ]
    met = sum(target.met is True for run in runs for target in run.report.targets)
    table = _markdown(("measurement", "target", "wanted", "measured", ""), rows)
    return f"## Targets\n\n{met} of {len(rows)} met.\n\n{table}\n"


def _section(run: Run) -> str:
    report = run.report
    lines = [f"## {report.title}", "", report.method, ""]
    for table in report.tables:
        lines += [f"**{table.title}**", "", _markdown(table.columns, table.rows), ""]
    lines += [f"- {note}" for note in report.notes]
    lines += [""] * bool(report.notes)
    lines += [_circumstances(run), ""]
    return "\n".join(lines)


def _circumstances(run: Run) -> str:
    scale = "" if run.scale is Scale.STANDARD else f" at the scale `{run.scale}`"
    machine = ". ".join(run.machine.values())
    return f"`python -m benchmarks {run.name}`{scale}, {run.date}, {run.seconds:.0f} s. {machine}."


def _markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def spoken(report: Report) -> str:
    """The same for a terminal."""
    blocks = [f"{table.title}\n" + "\n".join(_indented(table)) for table in report.tables]
    verdicts = "\n".join(_sentence(target) for target in report.targets)
    return "\n\n".join([*blocks, *([verdicts] if verdicts else []), *report.notes])


def _indented(table: Table) -> list[str]:
    return [f"  {line}" for line in table.lines()]


def _sentence(target: Target) -> str:
    return f"{target.verdict:>12}: {target.what}: {target.measured} (wanted {target.wanted})"
