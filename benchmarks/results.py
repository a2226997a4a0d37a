"""What a measurement hands back: tables, and for each target what was wanted and what was measured."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are text, formatted for people."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self) -> list[str]:
        """As text with aligned columns."""
        widths = [max(len(row[at]) for row in (self.columns, *self.rows)) for at in range(len(self.columns))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One sentence of what is wanted, and how it came out. ``met`` is None where it could not be measured."""

    what: str
    wanted: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        return {True: "met", False: "missed", None: "not measured"}[self.met]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One measurement, from one run."""

    title: str
    #: How it was measured, for people.
    method: str
    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            title=data["title"],
            method=data["method"],
            tables=tuple(
                Table(title=one["title"], columns=tuple(one["columns"]), rows=tuple(tuple(row) for row in one["rows"]))
                for one in data["tables"]
            ),
            targets=tuple(Target(**one) for one in data["targets"]),
            notes=tuple(data["notes"]),
        )


@dataclass(frozen=True, kw_only=True)
class Run:
    """A report with the circumstances of its run."""

    name: str
    scale: Scale
    report: Report
    #: Seconds that it took.
    seconds: float
    #: What the machine, the interpreter and the services were.
    machine: Mapping[str, str]
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        data = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**data, "scale": Scale(data["scale"]), "report": Report.read(data["report"])})
