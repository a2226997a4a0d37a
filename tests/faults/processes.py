"""Real processes of Calotype with the settings of a test, each with its own log, none left behind."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx

from calotype.local.process import Command, Process, free_port
from calotype.settings import Settings, environment

ROOT = Path(__file__).resolve().parents[2]
#: What a worker logs when Celery listens for doorbells.
LISTENING = "Connected to redis"


class Running(Process):
    """One process, and what it says."""

    def says(self, *words: str) -> bool:
        """Whether any of `words` is in its log."""
        text = self.log()
        return any(word in text for word in words)

    def log(self) -> str:
        return self.command.log.read_text(errors="replace")

    def kill(self) -> None:
        """As a node that loses its power, for this process."""
        self.signal(signal.SIGKILL)
        self.wait(10.0)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)


class Processes:
    """Starts them, and ends at `stop` what is left."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        #: Where the handlers of all workers write down that they began.
        self.beginnings = folder / "beginnings"
        self.beginnings.mkdir()
        self._started: list[Running] = []

    def worker(
        self, name: str = "worker", *, faults: Sequence[str] = (), batch: bool = False, **changes: Any
    ) -> Running:
        """A worker of the one queue of the fault tests, with faults built in and settings changed.

        `batch`: its jobs share calls.
        """
        options = ["--beginnings", str(self.beginnings), *(["--batch"] if batch else [])]
        options += [part for fault in faults for part in ("--fault", fault)]
        return self._start(name, "tests/faults/fault_worker.py", name, *options, **changes)

    def reconciler(self, name: str = "reconciler", **changes: Any) -> Running:
        return self._start(name, "-m", "worker.reconciler", **changes)

    def api(self, name: str = "api", *options: str, **changes: Any) -> Running:
        """The API on a port of its own; `url_of` says where."""
        return self._start(name, "tests/faults/fault_api.py", *options, **{"port": free_port(), **changes})

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.stop()

    def _start(self, name: str, *arguments: str, **changes: Any) -> Running:
        variables = environment(dataclasses.replace(self.settings, **changes))
        process = Running(
            Command(
                name=name,
                argv=[sys.executable, *arguments],
                environment={"PATH": os.defpath, "PYTHONPATH": str(ROOT), **variables},
                log=self.folder / f"{name}.log",
                cwd=ROOT,
            )
        )
        self._started.append(process)
        return process


def url_of(api: Running) -> str:
    """Where an API process listens."""
    return f"http://127.0.0.1:{api.command.environment['CALOTYPE_PORT']}"


def answers(api: Running) -> bool:
    """Whether an API process answers requests."""
    try:
        return httpx.get(f"{url_of(api)}/healthz", trust_env=False, timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def post(http: httpx.Client, api: Running, body: dict[str, Any]) -> tuple[UUID, float]:
    """Submits over HTTP; gives the job and the seconds that it took."""
    began = time.monotonic()
    answer = http.post(f"{url_of(api)}/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["id"]), time.monotonic() - began
