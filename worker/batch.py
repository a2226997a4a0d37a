"""Several jobs that share one call of their model, each with an outcome of its own.

The handler of a batch is a function of one argument, `run_batch(batch: Batch) -> None`. It gives every job its outcome
as soon as that is known, by `batch.finish` or `batch.fail`, and calls `batch.check()` at every step: jobs that are to
stop (canceled, out of time, moved to another worker) leave the batch there, and the others go on without them. When
nobody is left `check` raises, and there is nothing more to do.

What goes wrong for one job alone belongs inside `with batch.own(ctx)`. Whatever else the handler raises cannot be laid
at one job's door: the executor then runs those that are left one by one, so that only the one to blame fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from calotype.settings import Settings
from worker.context import Handler, HandlerResult, JobContext
from worker.failures import classify
from worker.members import Member
from worker.signals import Interrupted

#: Makes the files of a job that is through with the device; called in another thread, while the device goes on.
Finishing = Callable[[], HandlerResult]
#: Closes a member whose outcome is known, and takes it to its next state.
HandOver = Callable[[Member, Finishing | BaseException], None]


class NobodyLeft(Interrupted):
    """Every job of the batch has its outcome: whatever is being computed is for nobody."""


class Batch:
    """The jobs of one call, as their handler sees them."""

    def __init__(self, members: Sequence[Member], hand_over: HandOver, settings: Settings) -> None:
        self._members = list(members)
        self._hand_over = hand_over
        self._settings = settings

    @property
    def contexts(self) -> list[JobContext]:
        """The jobs whose outcome is open, in the order in which they were claimed."""
        return [member.context for member in self._members if member.open and member.context is not None]

    def is_open(self, ctx: JobContext) -> bool:
        return self._member(ctx).open

    def check(self) -> None:
        """Let jobs go that must stop. Cheap (no I/O): call it at every step. Raises NobodyLeft when none is left."""
        self.look_after(self.contexts)
        if not self.contexts:
            raise NobodyLeft

    def look_after(self, contexts: Sequence[JobContext]) -> None:
        """Let those of some jobs go that must stop."""
        for ctx in contexts:
            with self.own(ctx):
                ctx.check()

    def finish(self, ctx: JobContext, finishing: Finishing) -> None:
        """The device's part is done: `finishing` makes the files, and they are published, while others go on."""
        # Publishing is not the job's own time.
        ctx.signals.deadline = None
        self._close(self._member(ctx), finishing)

    def fail(self, ctx: JobContext, error: BaseException) -> None:
        """The job ends here, by its own failure or because it was told to stop (Interrupted)."""
        self._close(self._member(ctx), error)

    @contextmanager
    def own(self, ctx: JobContext) -> Iterator[None]:
        """What is raised inside is this job's own affair, unless it says that the device is lost."""
        try:
            yield
        except NobodyLeft:
            raise
        except Interrupted as exc:
            self._leave(ctx, exc)
        except Exception as exc:
            if classify(exc, self._settings).fatal:
                raise
            self._leave(ctx, exc)

    def alone(self, ctx: JobContext) -> Batch:
        """A batch of one; the others are looked after while it runs."""

        def look_after_others() -> None:
            self.look_after([other for other in self.contexts if other is not ctx])

        ctx.beside = look_after_others
        return Batch([self._member(ctx)], self._hand_over, self._settings)

    def _leave(self, ctx: JobContext, error: BaseException) -> None:
        # A check inside may have let it go already.
        if self.is_open(ctx):
            self.fail(ctx, error)

    def _close(self, member: Member, outcome: Finishing | BaseException) -> None:
        if not member.open:
            raise RuntimeError(f"job {member.job.id} has its outcome already")
        self._hand_over(member, outcome)

    def _member(self, ctx: JobContext) -> Member:
        return next(member for member in self._members if member.context is ctx)


BatchHandler = Callable[[Batch], None]


def one_by_one(handler: Handler) -> BatchHandler:
    """A handler of single jobs as one of batches of one."""

    def run(batch: Batch) -> None:
        (ctx,) = batch.contexts
        with batch.own(ctx):
            result = handler(ctx)
            batch.finish(ctx, lambda: result)

    return run
