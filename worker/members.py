"""The jobs that a worker has in hand."""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass, field

from calotype.jobs import Job
from worker.context import JobContext
from worker.signals import Signals

log = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class Member:
    """A claimed job, from its claim to its next state."""

    job: Job
    signals: Signals
    #: None until its spec was read.
    context: JobContext | None = None
    #: Whether its outcome is still open; when it is not, what is left is to write it down.
    open: bool = True
    #: Whether the row has its next state, or belongs to another worker.
    settled: bool = False
    #: When it came into hand, monotonic.
    began: float = field(default_factory=time.monotonic)
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def make_folder(self) -> str:
        """An empty folder of the job's own."""
        self._folder = tempfile.TemporaryDirectory(prefix=f"calotype-{self.job.id}-", ignore_cleanup_errors=True)
        return self._folder.name

    def remove_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
