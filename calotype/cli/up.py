"""`calotype up`: the embedded stack in the foreground, with its health in view."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.console import err, out

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from calotype.local.stack import Stack

#: How often the health display is drawn again.
REFRESH_SECONDS = 1.0
PHASE_STYLES = {"ready": "green", "starting": "yellow", "restarting": "red", "stopped": "dim"}


def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where the data lies; .calotype/ when not given.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; each serves every queue.")] = 1,
) -> None:
    """Run everything on this machine: services, API, reconciler and workers, until Ctrl-C.

    CALOTYPE_DATABASE_URL, _BROKER_URL and _S3_… name services to use instead of starting them.
    """
    from calotype.local.stack import Stack, StackOptions
    from calotype.settings import load_settings

    settings = load_settings()
    options = StackOptions(
        data_dir=data_dir or settings.data_dir, port=settings.port if port is None else port, workers=workers
    )
    console = err()
    stack = Stack(options, settings, lambda text: console.print(text, markup=False))
    display = _Health(stack, console)
    started = time.monotonic()
    console.print(f"starting on {stack.data_dir.path} …", markup=False)

    def announce() -> None:
        console.print(f"ready after {time.monotonic() - started:.1f} s; Ctrl-C stops everything\n")
        out().print(_address(stack), markup=False)
        display.start()

    try:
        stack.run(on_ready=announce, tick=display.tick)
    finally:
        display.stop()
    console.print("stopped")


def _address(stack: Stack) -> str:
    return "\n".join(
        (
            f"API        {stack.url}   (documentation at {stack.url}/docs)",
            f"API key    {stack.data_dir.read_api_key()}   (also in {stack.data_dir.api_key_file})",
            f"logs       {stack.data_dir.logs}",
            f'try        {_prefix(stack)}calotype submit generate --prompt "blue bird logo" -n 4 --output images',
        )
    )


def _prefix(stack: Stack) -> str:
    # The command line looks in .calotype/ by itself; another folder must be named.
    folder = stack.data_dir.path
    return "" if folder == Path(".calotype").absolute() else f"CALOTYPE_DATA_DIR={folder} "


class _Health:
    """A table of the parts, on a terminal only; elsewhere changes are told as lines by the supervisor."""

    def __init__(self, stack: Stack, console: Console) -> None:
        self._stack = stack
        self._console = console
        self._live: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def tick(self) -> None:
        if self._live is not None and time.monotonic() - self._drawn > REFRESH_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._table(), refresh=True)
        if self._stack.supervisor.stopping:
            self.stop()

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("part", "health", "pid", "up", "restarts"):
            table.add_column(column, justify="left" if column in ("part", "health") else "right")
        for part in self._stack.supervisor.status():
            table.add_row(
                part.name,
                Text(part.phase, style=PHASE_STYLES[part.phase]),
                str(part.pid or "-"),
                _duration(part.uptime_seconds),
                str(part.restarts),
            )
        counts = self._stack.job_counts()
        jobs = "the database does not answer" if counts is None else f"{counts[0]} waiting, {counts[1]} running"
        return Group(table, Text(f"jobs: {jobs}"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
