"""Waiting for a job before the reader's eyes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from calotype.cli.console import INTERRUPTED, err, out, print_json
from calotype.cli.render import job_details, subject

if TYPE_CHECKING:
    from rich.console import Console

    from calotype.client import Client


def follow(client: Client, job_id: str, *, timeout: float | None = None) -> dict[str, Any]:
    """Wait for the end of a job. Ctrl-C stops the waiting, not the job, says so, and ends the program."""
    try:
        with JobProgress(err()) as progress:
            return client.wait(job_id, timeout=timeout, on_progress=progress.update)
    except KeyboardInterrupt:
        err().print(f"\nThe job goes on. Follow it:  calotype wait {job_id}")
        err().print(f"read what it says:           calotype logs -f {job_id}")
        err().print(f"or end it:                   calotype cancel {job_id}")
        sys.exit(INTERRUPTED)


def tell_outcome(client: Client, job: dict[str, Any], *, output: Path | None, as_json: bool) -> None:
    """Print how a job ended, download its artifacts when asked, and exit with 1 when it did not succeed."""
    paths = client.download(job, output) if output is not None and job["state"] == "succeeded" else []
    if as_json:
        print_json(job)
    else:
        out().print(job_details(job))
        for path in paths:
            out().print(str(path), markup=False)
    if job["state"] != "succeeded":
        sys.exit(1)


class JobProgress:
    """A bar on a terminal; a line a change of state elsewhere."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[stage]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[eta]}"),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, Any] = {}
        self._states: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self, job: dict[str, Any]) -> None:
        """Show the present state of a job; one bar a job."""
        job_id, state = job["id"], job["state"]
        if not self._console.is_terminal:
            if self._states.get(job_id) != state:
                self._console.print(f"{subject(job)}: {state}", markup=False)
        else:
            self._show(job)
        self._states[job_id] = state

    def _show(self, job: dict[str, Any]) -> None:
        task = self._tasks.get(job["id"])
        if task is None:
            task = self._bar.add_task(subject(job), total=None, stage="", eta="")
            self._tasks[job["id"]] = task
        progress = job.get("progress") or {}
        total, step = progress.get("total"), progress.get("step") or 0
        if job["state"] == "succeeded":
            total = total or 1
            step = total
        stage = progress.get("stage") if job["state"] == "running" else job["state"]
        eta = progress.get("eta_seconds")
        self._bar.update(
            task,
            total=total,
            completed=step,
            stage=stage or job["state"],
            eta=f"about {eta:.0f} s left" if eta and job["state"] == "running" else "",
        )
