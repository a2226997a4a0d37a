"""Where output goes: results to stdout, everything about them to stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

#: The exit code of a program that Ctrl-C ended.
INTERRUPTED = 130
#: Columns of output that goes to a file or a pipe.
WIDE = 240


def out() -> Console:
    """The console for results."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        # A program that reads a table should not find its lines broken.
        console.width = WIDE
    return console


def err() -> Console:
    """The console for progress, hints and errors."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Machine output: one JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_json_line(value: Any) -> None:
    """Machine output that comes bit by bit: one JSON document a line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def fail(message: str, remedy: str = "", *, code: int = 1) -> NoReturn:
    """One message and what to do about it on stderr; ends the program."""
    from rich.markup import escape

    console = err()
    console.print(f"[bold red]error:[/] {escape(message)}")
    if remedy:
        console.print(escape(remedy))
    sys.exit(code)
