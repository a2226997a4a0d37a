"""Traces: what a simulation is given, as JSON lines.

Each line is an object with a ``type``. Times are seconds from the start of the trace.

``tenant``: ``name``; ``weight`` (1), ``max_running`` (no limit).
``worker``: ``name``, ``queues``; ``pool`` ("default"), ``speed`` (1; of twice the speed takes half the time),
``load_seconds`` (0; to load a model), ``memory`` (1; models that fit), ``batch_cost`` (0.5; see below).
``job``: ``t``, ``tenant``, ``queue``, ``seconds`` (alone, at speed 1, the model loaded); ``model`` (""; none to load),
``work`` (``seconds``; what estimates go by), ``units`` (1), ``batch_limit`` (1; units that one call takes), ``batch``
(the model; jobs of a queue with equal ones share calls), ``priority`` (5), ``max_attempts`` (3), ``deadline_seconds``
(none), ``failures`` (0; so many attempts end in a retryable failure).
``outage``: ``t``, ``worker``, ``seconds``; the worker is lost with its jobs and comes back.

A call for several jobs takes as long as its longest, and ``batch_cost`` of every other one: 1 if batches gain nothing,
0 if they are free. Lines may be in any order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from calotype.errors import FieldError, Invalid
from calotype.jobs import Kind
from calotype.scheduling import DEFAULT_PRIORITY, PRIORITIES
from calotype.specs.common import Strict

#: Ships with the package; made by :mod:`calotype.simulation.example`.
EXAMPLE = Path(__file__).with_name("example.jsonl")

Name = Annotated[str, Field(min_length=1, max_length=100)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class TraceTenant(Strict):
    """Who submits jobs."""

    type: Literal["tenant"] = "tenant"
    name: Name
    weight: Positive = 1.0
    max_running: Annotated[int, Field(ge=0)] | None = None


class TraceWorker(Strict):
    """A worker process with its device."""

    type: Literal["worker"] = "worker"
    name: Name
    queues: Annotated[list[Name], Field(min_length=1)]
    pool: Name = "default"
    speed: Positive = 1.0
    load_seconds: Seconds = 0.0
    memory: Count = 1
    batch_cost: Annotated[float, Field(ge=0, le=1)] = 0.5


class TraceJob(Strict):
    """A job that is submitted at ``t``."""

    type: Literal["job"] = "job"
    t: Seconds
    tenant: Name
    queue: Annotated[str, Field(pattern=r"^[a-z]+\.(train|generate|benchmark)$")]
    seconds: Positive
    model: str = ""
    work: Positive | None = None
    units: Count = 1
    batch_limit: Count = 1
    batch: str | None = None
    priority: int = Field(default=DEFAULT_PRIORITY, ge=PRIORITIES.start, le=PRIORITIES.stop - 1)
    max_attempts: Count = 3
    deadline_seconds: Positive | None = None
    failures: Annotated[int, Field(ge=0)] = 0

    @property
    def kind(self) -> Kind:
        return Kind(self.queue.rpartition(".")[2])


class TraceOutage(Strict):
    """A worker is lost at ``t`` and comes back after ``seconds``."""

    type: Literal["outage"] = "outage"
    t: Seconds
    worker: Name
    seconds: Seconds


Line = Annotated[TraceTenant | TraceWorker | TraceJob | TraceOutage, Field(discriminator="type")]
_LINE: TypeAdapter[Any] = TypeAdapter(Line)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Everything that a simulation is given; jobs in the order of their times."""

    tenants: Sequence[TraceTenant]
    workers: Sequence[TraceWorker]
    jobs: Sequence[TraceJob]
    outages: Sequence[TraceOutage] = ()


def read_trace(path: Path) -> Trace:
    """Reads a file of JSON lines.

    Raises:
        Invalid: names the line and what is wrong with it.
        OSError: the file cannot be read.
    """
    try:
        return parse_trace(path.read_text(encoding="utf-8").splitlines())
    except UnicodeDecodeError as exc:
        raise Invalid(f"{path} is not UTF-8 text.") from exc


def parse_trace(lines: Iterable[str]) -> Trace:
    """Like :func:`read_trace`; empty lines are skipped."""
    parsed = [_parse(number, text) for number, text in enumerate(lines, 1) if text.strip()]
    jobs = [line for line in parsed if isinstance(line, TraceJob)]
    trace = Trace(
        tenants=[line for line in parsed if isinstance(line, TraceTenant)],
        workers=[line for line in parsed if isinstance(line, TraceWorker)],
        jobs=sorted(jobs, key=lambda job: job.t),
        outages=[line for line in parsed if isinstance(line, TraceOutage)],
    )
    check(trace)
    return trace


def with_workers(trace: Trace, count: int) -> Trace:
    """The same jobs on so many workers: those of the trace in turn, under new names when there are more.

    Outages of workers that are left out go, too.
    """
    workers = []
    for number in range(count):
        one = trace.workers[number % len(trace.workers)]
        again = number // len(trace.workers)
        workers.append(one.model_copy(update={"name": f"{one.name}#{again + 1}"}) if again else one)
    names = {worker.name for worker in workers}
    return replace(trace, workers=workers, outages=[one for one in trace.outages if one.worker in names])


def check(trace: Trace) -> None:
    """Raises Invalid when the parts do not fit together."""
    tenants, workers = ({one.name for one in part} for part in (trace.tenants, trace.workers))
    if len(tenants) < len(trace.tenants) or len(workers) < len(trace.workers):
        raise Invalid("Two tenants, or two workers, of the trace have the same name; give each its own.")
    if not trace.workers:
        raise Invalid("The trace has no worker; add a line of type worker.")
    _check_known("tenant", {job.tenant for job in trace.jobs}, tenants)
    _check_known("worker", {outage.worker for outage in trace.outages}, workers)


def _check_known(word: str, named: set[str], known: set[str]) -> None:
    if unknown := sorted(named - known):
        raise Invalid(f"The trace has no {word} {unknown[0]!r}; add a line of type {word}.")


def _parse(number: int, text: str) -> Any:
    try:
        return _LINE.validate_python(json.loads(text))
    except json.JSONDecodeError as exc:
        raise Invalid(f"Line {number} of the trace is not JSON: {exc.msg}.") from exc
    except ValidationError as exc:
        # The first part of a location is the type, which the line shows itself.
        errors = [FieldError(loc=tuple(error["loc"][1:]), msg=error["msg"]) for error in exc.errors()]
        where = ".".join(str(part) for part in errors[0].loc) or "type"
        raise Invalid(f"Line {number} of the trace: {where}: {errors[0].msg}.", errors=errors) from exc
