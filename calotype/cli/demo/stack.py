"""The stack that the demo runs on: the one that is there, or one of its own for as long as it needs it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calotype.cli.connect import Target, target
from calotype.cli.console import err
from calotype.local.data_dir import DataDir, RunningStack
from calotype.local.errors import StackError
from calotype.local.modules import module_argv, module_environment
from calotype.local.process import Command, Process, free_port, port_problem
from calotype.settings import load_settings

#: The longest that a first start may take on a slow, busy machine.
START_SECONDS = 300.0
#: The longest that a stack may take to stop: the grace of its worker, then of its services.
STOP_SECONDS = 120.0


@contextmanager
def running_stack(url: str | None, api_key: str | None, data_dir: Path | None) -> Iterator[Target]:
    """Where to submit. A stack that is started here is stopped at the end, however the end comes."""
    settings = load_settings()
    place = DataDir(data_dir or settings.data_dir)
    running = place.running()
    if url is not None or settings.url is not None:
        yield target(url, api_key)
    elif running is not None and running.ready:
        err().print(f"using the stack that runs at {running.url}", markup=False)
        yield Target(running.url, api_key or place.read_api_key() or "")
    else:
        with _own_stack(place, settings.port) as started:
            yield Target(started.url, place.read_api_key() or "")


@contextmanager
def _own_stack(place: DataDir, port: int) -> Iterator[RunningStack]:
    chosen = port if port_problem(port) is None else free_port()
    place.prepare()
    arguments = ("up", "--port", str(chosen), "--data-dir", str(place.path))
    command = Command(
        name="calotype up",
        argv=module_argv("calotype.cli", *arguments),
        environment=module_environment(os.environ),
        log=place.logs / "up.log",
        grace_seconds=STOP_SECONDS,
    )
    console = err()
    process = Process(command)
    try:
        with console.status("starting Postgres, Redis, S3, the API and a worker …"):
            started = _await_ready(place, process)
        console.print(f"stack ready at {started.url} after {process.age_seconds:.1f} s", markup=False)
        yield started
    finally:
        with console.status("stopping the stack …"):
            process.stop()
        console.print("stack stopped")


def _await_ready(place: DataDir, process: Process) -> RunningStack:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        running = place.running()
        if running is not None and running.ready:
            return running
        if process.exit_code is not None:
            raise StackError(f"The stack did not start:\n{process.log_tail()}", f"Its logs are in {place.logs}.")
        time.sleep(0.1)
    raise StackError(
        f"The stack was not ready after {START_SECONDS:.0f} s:\n{process.log_tail()}",
        f"Its logs are in {place.logs}.",
    )
