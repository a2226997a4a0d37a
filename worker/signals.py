"""What the thread that runs a job and the threads that hold its lease and end it tell each other."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from calotype.jobs import Progress
from worker.said import Said


class Interrupted(BaseException):
    """The job must stop now, through no fault of its own.

    Derives from BaseException, as asyncio.CancelledError does, so that an `except Exception` around a step (a retry
    after out-of-memory, a library's callback guard) cannot swallow it. A handler may catch it to save a
    checkpoint, and must raise it again.
    """


class CancelRequested(Interrupted):
    """Somebody asked for the job to be canceled."""


class LeaseLost(Interrupted):
    """The job belongs to another worker by now: nothing this one writes counts any more."""


class ShuttingDown(Interrupted):
    """The worker is about to stop: save a checkpoint if the job has one, then let it be released."""


@dataclass(kw_only=True, slots=True)
class Signals:
    """Flags and clocks of one running job. Every field is written by one side and read by the other."""

    #: Set for the whole process when it was asked to stop.
    shutdown: threading.Event
    #: Set by the lease thread when the row says `canceling`.
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Set by the lease thread when a write was refused because the epoch is stale.
    lease_lost: threading.Event = field(default_factory=threading.Event)
    #: Set when the job's last write is on its way: after it the lease is gone, and rightly so.
    settling: bool = False
    #: Monotonic time at which the job runs out of its `timeout_seconds`; None: it may run for ever.
    deadline: float | None = None
    #: Monotonic time of the last `check()` or `progress()`: the stall detector looks at it.
    last_sign: float = field(default_factory=time.monotonic)
    #: The newest progress, waiting for the lease thread to write it; None: nothing new.
    unwritten: Progress | None = None
    #: Log lines and metrics, waiting for the lease thread, or at last for the transaction that ends the job.
    said: Said = field(default_factory=Said)

    def alive(self) -> None:
        """Note that the handler came by: it is not hanging inside a call."""
        self.last_sign = time.monotonic()

    def raise_if_unwanted(self) -> None:
        """Raise if nobody wants the result any more; a lost lease outranks, since then nothing may be written."""
        if self.lease_lost.is_set():
            raise LeaseLost
        if self.cancel.is_set():
            raise CancelRequested

    def raise_if_interrupted(self) -> None:
        """Raise the strongest reason to stop working."""
        self.raise_if_unwanted()
        if self.shutdown.is_set():
            raise ShuttingDown

    def timed_out(self) -> bool:
        """Whether the job has used up its `timeout_seconds`."""
        return self.deadline is not None and time.monotonic() >= self.deadline
