"""Why a job is where it is: stable codes for programs, plain words for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from calotype.explain.facts import Running, ServingWorker
from calotype.jobs import Job


class Code(StrEnum):
    """What holds a job up, or where it is. Never renamed."""

    #: It has ended; its state says how.
    ENDED = "ended"
    #: A worker works on it.
    RUNNING = "running"
    #: Its worker, or one that it waits for, is fetching and loading its model.
    MODEL_LOADING = "model_loading"
    #: A user canceled it; its worker will stop at the next step.
    CANCELING = "canceling"
    #: It waits for the result of an equal job instead of running.
    WAITS_FOR_EQUAL = "waits_for_equal"
    #: An operator paused its queue.
    QUEUE_PAUSED = "queue_paused"
    #: No live worker serves its queue.
    NO_WORKER = "no_worker"
    #: Workers that serve its queue take no more jobs.
    WORKER_DRAINING = "worker_draining"
    #: A worker says that it lives and is idle, but does not look for work.
    WORKER_DEAF = "worker_deaf"
    #: A worker of its queue starts again and again.
    WORKER_CRASH_LOOPING = "worker_crash_looping"
    #: It failed and is tried again later.
    BACKOFF = "backoff"
    #: As many jobs of the tenant run as may.
    TENANT_LIMIT = "tenant_limit"
    #: Other jobs go first.
    BEHIND = "behind"
    #: Its turn is next; every worker that serves its queue is busy.
    WORKERS_BUSY = "workers_busy"
    #: Its turn is next and a worker is idle.
    STARTING = "starting"
    #: It will expire unless it starts soon, and it may not.
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One of the things that hold a job up."""

    code: Code
    #: In words, with what can be done about it.
    detail: str


def ended(job: Job) -> Reason:
    why = f": {job.error.title}" if job.error is not None else ""
    return Reason(code=Code.ENDED, detail=f"The job has ended, {job.state}{why}.")


def runs(job: Job) -> Reason:
    if job.progress is None:
        return Reason(code=Code.RUNNING, detail="A worker has the job; it has not told how far it is.")
    eta = job.progress.eta_seconds
    left = f"; about {span(eta)} to go" if eta is not None else ""
    stage = f", {job.progress.stage}" if job.progress.stage else ""
    return Reason(code=Code.RUNNING, detail=f"A worker runs the job: {job.progress.fraction:.0%}{stage}{left}.")


def loads_model() -> Reason:
    return Reason(
        code=Code.MODEL_LOADING, detail="Its worker is fetching and loading the model; the first time is long."
    )


def canceling() -> Reason:
    return Reason(code=Code.CANCELING, detail="The job was canceled; its worker stops at the next step.")


def waits_for(leader_id: UUID) -> Reason:
    detail = f"It asks for the same as job {leader_id}, which is not ready, and gets its result when that succeeds."
    return Reason(code=Code.WAITS_FOR_EQUAL, detail=detail)


def paused(queue: str, why: str) -> Reason:
    said = f": {why}" if why else ""
    return Reason(code=Code.QUEUE_PAUSED, detail=f"An operator paused the queue {queue}{said}. It waits for a resume.")


def no_worker(queue: str) -> Reason:
    detail = f"No live worker serves the queue {queue}. It starts when an operator starts one."
    return Reason(code=Code.NO_WORKER, detail=detail)


def draining(workers: Sequence[ServingWorker]) -> Reason:
    names = _names([worker.name for worker in workers])
    return Reason(code=Code.WORKER_DRAINING, detail=f"{names} will take no more jobs: it is being drained or stopped.")


def deaf(worker: ServingWorker) -> Reason:
    detail = (
        f"The worker {worker.name} is idle but has not looked for work for {span(worker.silent_seconds)}; restart it."
    )
    return Reason(code=Code.WORKER_DEAF, detail=detail)


def looping(names: Sequence[str]) -> Reason:
    detail = f"{_names(names)} starts again and again within minutes; its log tells why it ends."
    return Reason(code=Code.WORKER_CRASH_LOOPING, detail=detail)


def backs_off(job: Job, now: datetime) -> Reason:
    left = span((job.available_at - now).total_seconds())
    detail = f"Attempt {job.attempt} of {job.max_attempts} failed; the next one waits until {_time(job.available_at)}"
    return Reason(code=Code.BACKOFF, detail=f"{detail} (in {left}).")


def limited(limit: int, running: int) -> Reason:
    detail = f"{running} jobs of your tenant run and {limit} may; it starts when one of them has ended."
    return Reason(code=Code.TENANT_LIMIT, detail=detail)


def behind(own: int, others: int, *, more: bool) -> Reason:
    parts = [f"{'at least ' if more else ''}{own} of yours"] if own else []
    parts += [f"about {others} of other tenants"] if others else []
    plain = "jobs go" if own + others > 1 else "job goes"
    return Reason(code=Code.BEHIND, detail=f"{own + others} {plain} first: {' and '.join(parts)}.")


def loading_elsewhere(worker: ServingWorker) -> Reason:
    detail = f"The worker {worker.name} is loading a model; it is not free before that."
    return Reason(code=Code.MODEL_LOADING, detail=detail)


def all_busy(workers: int, queue: str) -> Reason:
    all_of_them = f"all {workers} workers that serve {queue} are" if workers > 1 else f"the one worker of {queue} is"
    return Reason(code=Code.WORKERS_BUSY, detail=f"Its turn is next; {all_of_them} busy.")


def starts_now() -> Reason:
    return Reason(code=Code.STARTING, detail="Its turn is next and a worker is idle; it starts within seconds.")


def may_expire(expires_at: datetime) -> Reason:
    detail = f"It expires at {_time(expires_at)} unless it starts before, and its turn may come later."
    return Reason(code=Code.DEADLINE, detail=detail)


def is_loading(worker: ServingWorker, jobs: Sequence[Running]) -> bool:
    """Whether the worker works for a model that it has not loaded yet."""
    mine = [job for job in jobs if job.worker_id == worker.id]
    return any(job.model_key and not job.began and job.model_key not in worker.loaded_models for job in mine)


def span(seconds: float) -> str:
    """A length of time in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(0.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _names(names: Sequence[str]) -> str:
    return f"Each of the workers {', '.join(names)}" if len(names) > 1 else f"The worker {names[0]}"


def _time(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
