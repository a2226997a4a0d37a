"""How jobs, models and the rest look to a person."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

STATE_STYLES = {
    "queued": "cyan",
    "running": "blue",
    "canceling": "yellow",
    "succeeded": "green",
    "failed": "red",
    "canceled": "yellow",
    "expired": "yellow",
}


def describe(job: Json) -> str:
    """A job in a few words: `generate starter-diffusion@1`."""
    return " ".join(str(part) for part in (job["kind"], job.get("model") or job["family"]) if part)


def subject(job: Json) -> str:
    """What a job is about, for one of many lines of progress: `generate blue bird logo`."""
    asked = job["spec"].get("input", {})
    about = asked.get("prompt") or asked.get("output_model")
    if job["kind"] == "benchmark":
        about = f"of {len(asked.get('contenders', []))} models"
    return _short(f"{job['kind']} {about or job['family']}", 44, "…")


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]], empty: str) -> RenderableType:
    """A plain table; ``empty`` is said when it has no rows."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The first column names the row; it is there to be copied.
        made.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else escape(_cell(cell)) for cell in row))
    return made if made.row_count else Text(empty, style="dim")


def job_table(jobs: Iterable[Json]) -> RenderableType:
    rows = ((job["id"], describe(job), _state(job), _progress(job), moment(job["created_at"])) for job in jobs)
    return table(("id", "what", "state", "progress", "created"), rows, "no jobs")


def job_details(job: Json) -> RenderableType:
    """A job as lines of facts, then its artifacts."""
    facts: list[tuple[str, str | Text]] = [("job", job["id"]), ("what", describe(job)), ("state", _state(job))]
    if job["state"] == "running":
        facts.append(("progress", _progress(job)))
    facts += [
        ("attempt", f"{job['attempt']} of {job['max_attempts']}"),
        ("created", moment(job["created_at"])),
    ]
    if job.get("started_at") and job.get("finished_at"):
        facts.append(("took", f"{seconds_between(job['started_at'], job['finished_at']):.1f} s"))
    if (job.get("result") or {}).get("cached"):
        facts.append(("cached", f"from job {job['result']['cached_from']}"))
    if job.get("artifacts_expired_at"):
        facts.append(("files", f"deleted {moment(job['artifacts_expired_at'])}"))
    error = job.get("error")
    if error:
        text = f"{error['title']} ({error['code']}): {error['detail']}"
        facts.append(("error", Text(text, style="red")))
    facts.append(("spec", json.dumps(job["spec"].get("input", job["spec"]), ensure_ascii=False)))
    if job.get("result"):
        facts.append(("result", _short(json.dumps(job["result"], ensure_ascii=False))))
    lines = Text("\n").join(Text.assemble((f"{label:<10}", "bold"), value) for label, value in facts)
    artifacts = job.get("artifacts") or []
    if not artifacts:
        return lines
    rows = ((a["name"], a["content_type"], a["bytes"], a["sha256"][:12], _size(a)) for a in artifacts)
    return Group(lines, "", table(("artifact", "type", "bytes", "sha256", "size"), rows, ""))


def moment(time: str | None) -> str:
    """An RFC 3339 time as `2026-11-24 09:30:16`, in the reader's time zone."""
    if time is None:
        return ""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds_between(start: str, end: str) -> float:
    """Between two RFC 3339 times."""
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _state(job: Json) -> Text:
    return Text(job["state"], style=STATE_STYLES.get(job["state"], ""))


def _progress(job: Json) -> str:
    progress = job.get("progress")
    if not progress or job["state"] not in ("running", "canceling"):
        return ""
    fraction = progress.get("fraction")
    share = f"{fraction:.0%} " if fraction is not None else ""
    return f"{share}{progress.get('stage') or ''}".strip()


def _size(artifact: Json) -> str:
    return f"{artifact['width']}×{artifact['height']}" if artifact.get("width") else ""


def _short(text: str, most: int = 2000, mark: str = "… (all of it with --json)") -> str:
    return text if len(text) <= most else f"{text[:most]}{mark}"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
