"""What the demo leaves behind: summary.json for programs, report.html for people, a table on the terminal."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.cli.render import seconds_between, table

if TYPE_CHECKING:
    from rich.console import RenderableType

Json = dict[str, Any]
#: As the benchmark gives it: ``rows`` (key, label, unit, better), ``columns`` (name, values and notes by key).
Matrix = Json


def job_entry(job: Mapping[str, Any]) -> Json:
    """A job as `summary.json` lists it; seconds count from its start to its end."""
    return {
        "id": job["id"],
        "kind": job["kind"],
        "family": job["family"],
        "model": job["model"],
        "state": job["state"],
        "seconds": round(seconds_between(job["started_at"], job["finished_at"]), 3),
    }


def image_entry(job: Mapping[str, Any], artifact: Mapping[str, Any], path: Path, root: Path) -> Json:
    """An image as `summary.json` lists it: of a prompt or of a label; the digest is of the file on this disk."""
    asked = job["spec"]["input"]
    return {
        "path": path.relative_to(root).as_posix(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "width": artifact["width"],
        "height": artifact["height"],
        "seed": artifact["seed"],
        "model": job["model"],
        "prompt": asked.get("prompt"),
        "label": asked.get("label"),
        "job": job["id"],
    }


def summary(jobs: Sequence[Json], images: Sequence[Json], matrix: Matrix, first_image_seconds: float | None) -> Json:
    """The whole of `summary.json`."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "starter_first_image_seconds": first_image_seconds,
        "jobs": list(jobs),
        "images": list(images),
        "decision_matrix": matrix,
    }


def write_summary(content: Json, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def matrix_rows(matrix: Matrix) -> list[list[str]]:
    """The decision matrix as text: what is measured, then a cell a contender."""
    found = []
    for row in matrix["rows"]:
        label = f"{row['label']} ({row['unit']})" if row["unit"] else row["label"]
        better = "↓" if row["better"] == "lower" else "↑"
        cells = [shown(column["values"].get(row["key"])) for column in matrix["columns"]]
        found.append([f"{label} {better}", *cells])
    return found


def matrix_heads(matrix: Matrix) -> list[str]:
    """The column heads that go with :func:`matrix_rows`."""
    return ["↓ lower is better, ↑ higher is better", *(column["name"] for column in matrix["columns"])]


def matrix_table(matrix: Matrix) -> RenderableType:
    """The decision matrix, a column a contender."""
    return table(matrix_heads(matrix), matrix_rows(matrix), "nothing was measured")


def shown(value: Any) -> str:
    """A measured value for people: four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def write_html(content: Json, sheets: Mapping[str, Path], benchmark_page: str | None, path: Path) -> None:
    """One page that needs nothing beside itself."""
    matrix: Matrix = content["decision_matrix"]
    parts = [
        f"<p class=lead>First image after {shown(content['starter_first_image_seconds'])} s. "
        f"{len(content['jobs'])} jobs, {len(content['images'])} images, made {escape(content['made_at'])}.</p>",
        "<h2>Which model?</h2>",
        _html_table(matrix_heads(matrix), matrix_rows(matrix)),
        "<h2>Images of the diffusion model, by prompt</h2>",
        _image(sheets["starter"], "Contact sheet of the diffusion model"),
        "<h2>Images of the GAN, by colour</h2>",
        _image(sheets["gan"], "Contact sheet of the GAN"),
        "<h2>Before and after fine-tuning on a brand</h2>",
        _image(sheets["brand"], "The brand's prompts before and after fine-tuning"),
        "<h2>Jobs</h2>",
        _html_table(
            ["id", "kind", "model", "state", "seconds"],
            (
                [job["id"], job["kind"], job["model"] or job["family"], job["state"], shown(job["seconds"])]
                for job in content["jobs"]
            ),
        ),
    ]
    if benchmark_page is not None:
        # The benchmark's own page, plots and all, in a frame that may run nothing and reach nothing.
        parts.append(
            "<h2>The benchmark in full</h2>"
            f'<iframe sandbox title="Benchmark report" srcdoc="{escape(benchmark_page)}"></iframe>'
        )
    path.write_text(_PAGE.replace("{{body}}", "\n".join(parts)), encoding="utf-8")


def _html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(str(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _image(path: Path, words: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Calotype demo</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
  .lead { color: #555; }
  table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
  th, td { text-align: left; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid #ddd; }
  img { max-width: 100%; }
  iframe { width: 100%; height: 60rem; border: 1px solid #ddd; }
  @media (prefers-color-scheme: dark) {
    body { background: #1b1b1b; color: #ddd; } th, td, iframe { border-color: #444; } .lead { color: #aaa; }
    iframe { background: #fff; }
  }
</style>
</head>
<body>
<h1>Calotype demo</h1>
{{body}}
</body>
</html>
"""
