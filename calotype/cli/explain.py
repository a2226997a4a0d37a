"""`calotype explain JOB`, and what a dry run prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import out, print_json
from calotype.cli.jobs import JobId
from calotype.cli.render import moment

Json = Mapping[str, Any]


def explain(job_id: JobId, url: Url = None, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Say why a job waits, and when it is expected to start."""
    with connect(url, api_key) as client:
        found = client.explain(job_id)
    print_json(found) if as_json else out().print(explanation(found))


def explanation(found: Json) -> Text:
    """An explanation as lines."""
    facts = [("state", found["state"]), *_waiting(found)]
    start = found["estimated_start"]
    if start is not None:
        facts.append(("starts", _between(moment(start["earliest"]), moment(start["latest"]))))
    return _lines(facts)


def quote(found: Json) -> Text:
    """A quote as lines."""
    words = {
        "run": "a worker makes it",
        "cache": "it is answered at once from an equal job",
        "equal_job": "it gets the result of an equal job that is on its way",
    }
    facts = [("dry run", "nothing was submitted"), ("result", words[found["answered"]]), *_waiting(found)]
    if found["wait_seconds"] is not None:
        facts.append(("waits", _range(found["wait_seconds"], "{:,.0f} s")))
    facts.append(("GPU time", _range(found["gpu_seconds"], "{:,.1f} s")))
    if found["usd"] is not None:
        facts.append(("costs", _range(found["usd"], "${:,.4f}")))
    return _lines(facts)


def _waiting(found: Json) -> list[tuple[str, str]]:
    facts = []
    if found["position"] is not None:
        more = "at least " if found["ahead"]["more"] else ""
        facts.append(("position", f"{more}{found['position']}"))
    return facts + [("why" if not number else "", reason["detail"]) for number, reason in enumerate(found["reasons"])]


def _range(values: Json, form: str) -> str:
    most = values["most"]
    return _between(form.format(values["least"]), form.format(most) if most is not None else "")


def _between(least: str, most: str) -> str:
    return f"{least} to {most}" if most else f"{least} at the earliest"


def _lines(facts: list[tuple[str, str]]) -> Text:
    return Text("\n").join(Text.assemble((f"{label:<10}", "bold"), value) for label, value in facts)
