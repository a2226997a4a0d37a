"""`calotype submit bulk`: many jobs from a file of JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.connect import ApiKey, AsJson, Url, connect
from calotype.cli.console import err, fail, out, print_json


def submit_bulk(
    file: Annotated[str, typer.Argument(metavar="FILE", help="One spec a line, or - for standard input.")],
    url: Url = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Submit many jobs: a file with one spec a line. Prints their ids; exit code 1 when a line was refused."""
    specs = list(_read(file))
    with connect(url, api_key) as client:
        answers = list(client.submit_bulk(spec for _, spec in specs))
    if as_json:
        print_json(answers)
    else:
        for answer in answers:
            _tell(answer, specs[answer["index"]][0])
    refused = sum("problem" in answer for answer in answers)
    if not as_json:
        err().print(f"{len(answers) - refused} submitted, {refused} refused", markup=False)
    if refused:
        raise typer.Exit(1)


def _tell(answer: dict[str, Any], line: int) -> None:
    if "job" in answer:
        out().print(answer["job"]["id"], markup=False)
    else:
        err().print(f"line {line}: {answer['problem']['detail']}", markup=False)


def _read(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each spec with the number of its line, from 1; nothing is sent when one cannot be read."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        fail(f"{file} could not be read: {exc.strerror if isinstance(exc, OSError) else 'it is not UTF-8 text'}.")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as exc:
            fail(f"{file}, line {number} is not JSON: {exc.msg} in column {exc.colno}. Nothing was submitted.")
        if not isinstance(value, dict):
            fail(f"{file}, line {number} holds no JSON object. Nothing was submitted.")
        yield number, value
