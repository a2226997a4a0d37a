"""What happened to a job, as lines a person can read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import INTERRUPTED, err, out, print_json_line
from calotype.cli.jobs import JobId
from calotype.cli.render import STATE_STYLES

Json = Mapping[str, Any]

LEVEL_STYLES = {"warning": "yellow", "error": "red"}


def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Print what a job said: log lines, metrics, and where it stood. With --json every event, one a line."""
    console = out()
    with connect(url, api_key) as client:
        try:
            for event in client.events(job_id, follow=follow):
                if as_json:
                    print_json_line(event)
                    continue
                line = event_line(event)
                if line is not None:
                    console.print(line)
        except KeyboardInterrupt:
            err().print(f"\nThe job goes on. Follow it:  calotype logs -f {job_id}")
            sys.exit(INTERRUPTED)


def event_line(event: Json) -> Text | None:
    """An event in a line: `12:00:01  loss 0.31  step 40`; None for progress, which is no news a moment later."""
    kind, data = event["type"], event["data"]
    if kind == "progress":
        return None
    time = datetime.fromisoformat(event["created_at"]).astimezone().strftime("%H:%M:%S")
    said = {"state": _state, "metrics": _metrics, "checkpoint": _checkpoint}.get(kind, _log)(data)
    return Text.assemble((time, "dim"), "  ", said)


def _state(data: Json) -> Text:
    state = str(data["state"])
    return Text.assemble((state, STATE_STYLES.get(state, "")), "".join(f" ({why})" for why in _reasons(data)))


def _reasons(data: Json) -> Iterator[str]:
    if data["state"] == "running":
        yield f"attempt {data['attempt']}"
    if data.get("error"):
        yield f"{data['error']['title']}: {data['error']['detail']}"
    elif data.get("reason"):
        yield str(data["reason"]).replace("_", " ")
    if data.get("retry_in_seconds"):
        yield f"again in {data['retry_in_seconds']:.0f} s"


def _metrics(data: Json) -> Text:
    parts = [f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in data.items()]
    return Text("  ".join(parts))


def _checkpoint(data: Json) -> Text:
    return Text(f"checkpoint at step {data.get('step')}")


def _log(data: Json) -> Text:
    # The handler's own words: never taken for markup or for control sequences of the terminal.
    text = "".join(char if char.isprintable() or char in "\n\t" else "�" for char in str(data.get("message", "")))
    return Text(text, style=LEVEL_STYLES.get(str(data.get("level", "")), ""))
