"""The systems that are compared, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.standin import Plan
from calotype.local.process import Process

__all__ = ["Observed", "Submit", "Submitted", "System"]


@dataclass(frozen=True)
class Submitted:
    """A job that a system took on. Times are seconds since the epoch by this machine's clock."""

    id: str
    #: When the client began to ask.
    sent: float
    #: When it had the answer.
    accepted: float


@dataclass(frozen=True)
class Observed:
    """What the database says of a job. Times as above, None for what has not happened or is not recorded."""

    ended: bool
    #: From when on the row says that it runs.
    running: float | None
    #: When its work began, which is after the commit that says so.
    began: float | None


Submit = Callable[[Plan], Submitted]


class System(Protocol):
    """A job queue with its own way in, its own workers and its own table, on services that all share."""

    @property
    def name(self) -> str: ...

    def start_worker(self, name: str) -> Process:
        """Start one worker process, one job at a time; returns when it can take jobs."""

    def submitter(self) -> Submit:
        """A client of its own, for one thread."""

    def look(self, job_id: str) -> Observed:
        """Read a job straight from the database, so that looking does not load what is measured."""
