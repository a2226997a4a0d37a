"""Many jobs in one call: JSON lines in, JSON lines out, every line on its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from flask import Blueprint, Response, g, request
from flask.typing import ResponseReturnValue
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api import reading, schemas, serialize, submitting
from api.auth import principal
from api.calls import Answer, JsonBody, call
from api.errors import problem_body
from api.services import Services, services
from calotype import idempotency, queue, specs
from calotype.database import transaction, undid_deadlock
from calotype.errors import CalotypeError, DependencyDown, FieldError, Invalid, LimitExceeded, TooLarge
from calotype.jobs import Job, State
from calotype.tenants import Scope

logger = logging.getLogger(__name__)
blueprint = Blueprint("bulk", __name__)

#: Lines of one call, and how many times as large as a single body all of them may be.
MOST_LINES, MOST_BODIES = 1000, 16
#: Lines recorded in one transaction: few commits, and no lock is held for long.
CHUNK = 50

#: What became of a line: the job, or why there is none.
Outcome = Job | CalotypeError


class _Line:
    """A line that was understood."""

    def __init__(self, data: bytes, limit: int) -> None:
        """Raises a CalotypeError that says what is wrong with it."""
        if len(data) > limit:
            raise TooLarge(f"The line has {len(data)} bytes; {limit} are the most that a job may have.")
        value = reading.parse_json(data, "The line")
        given = value.pop("idempotency_key", None) if isinstance(value, dict) else None
        self.key = reading.check_idempotency_key(given, ("idempotency_key",)) if given is not None else None
        self.request = specs.parse(value)


def _read() -> list[bytes]:
    request.max_content_length = MOST_BODIES * services().settings.max_body_bytes
    if "Idempotency-Key" in request.headers:
        text = "is for single jobs; put an idempotency_key into each line instead"
        raise Invalid(errors=[FieldError(loc=("header", "Idempotency-Key"), msg=text)])
    return reading.read_lines(MOST_LINES)


@blueprint.post("/jobs:bulk")
@call(
    "Jobs",
    "Submit many jobs",
    scope=Scope.JOBS_WRITE,
    description=f"Up to {MOST_LINES} lines of JSON, each a job as `POST /v1/jobs` takes it, perhaps with an "
    "`idempotency_key` beside its members. Every line is checked and recorded on its own, and answered by one line, in "
    "order: a bad one does not hurt the others. The call itself answers 200 once it has read the lines.",
    body=JsonBody(schema=schemas.BulkLine, parse=_read, examples=(), media_type=reading.NDJSON),
    answers=[
        Answer(
            status=200,
            description="One JSON object a line, each of this schema.",
            model=schemas.BulkAnswer,
            media_type=reading.NDJSON,
        )
    ],
)
def submit_jobs(body: list[bytes]) -> ResponseReturnValue:
    here, tenant_id = services(), principal().tenant_id
    outcomes: list[Outcome | None] = [None] * len(body)
    lines: list[tuple[int, _Line]] = []
    for index, data in enumerate(body):
        try:
            lines.append((index, _Line(data, here.settings.max_body_bytes)))
        except CalotypeError as exc:
            outcomes[index] = exc
    for index, outcome in _record_all(here, tenant_id, lines):
        outcomes[index] = outcome
    for name in sorted({one.queue for one in outcomes if isinstance(one, Job) and not one.state.terminal}):
        here.doorbell.ring(name)
    return _answer(here, [outcome for outcome in outcomes if outcome is not None])


def _record_all(here: Services, tenant_id: UUID, lines: Sequence[tuple[int, _Line]]) -> list[tuple[int, Outcome]]:
    """Chunk by chunk; when Postgres goes away, what was not recorded says so.

    Raises:
        DependencyDown: it was away from the beginning.
    """
    done: list[tuple[int, Outcome]] = []
    for start in range(0, len(lines), CHUNK):
        chunk = lines[start : start + CHUNK]
        try:
            done += _record_chunk(here, tenant_id, chunk)
        except DependencyDown as exc:
            if not done:
                raise
            return [*done, *((index, exc) for index, _ in lines[start:])]
    return done


def _record_chunk(here: Services, tenant_id: UUID, chunk: Sequence[tuple[int, _Line]]) -> list[tuple[int, Outcome]]:
    try:
        with transaction(here.engine) as conn:
            idempotency.hold(conn, tenant_id, (line.key for _, line in chunk if line.key is not None))
            # A line that is answered from the cache counts at once, and later lines lock jobs: usage comes after jobs.
            with queue.usage_last(conn) as counted:
                return [(index, _record(conn, here, tenant_id, line, counted)) for index, line in chunk]
    except DependencyDown as exc:
        if len(chunk) == 1 or not undid_deadlock(exc):
            raise
        # Another call records equal jobs in another order. Nothing of this chunk was kept; one line holds only one.
        return [found for one in chunk for found in _record_chunk(here, tenant_id, [one])]


def _record(conn: sa.Connection, here: Services, tenant_id: UUID, line: _Line, counted: list[queue.Count]) -> Outcome:
    try:
        with _savepoint(conn, counted):
            return submitting.record(conn, here.settings, tenant_id, line.request, line.key)
    except (OperationalError, InterfaceError, PoolTimeout):
        # Not this line's fault, nor can the others go on.
        raise
    except CalotypeError as exc:
        return exc
    except Exception:
        logger.exception("unexpected error in a line")
        return CalotypeError(f"Something went wrong inside the server; its log tells more under {g.request_id}.")


@contextmanager
def _savepoint(conn: sa.Connection, counted: list[queue.Count]) -> Iterator[None]:
    """Undoes a line that fails, and takes back what it counted."""
    before = len(counted)
    try:
        with conn.begin_nested():
            yield
    except BaseException:
        del counted[before:]
        raise


def _answer(here: Services, outcomes: Sequence[Outcome]) -> Response:
    # Answered from the request cache, some have artifacts at once.
    ended = [one.id for one in outcomes if isinstance(one, Job) and one.state is State.SUCCEEDED]
    with transaction(here.engine) as conn:
        artifacts = queue.artifacts_of(conn, ended)
    lines = [
        _accepted(index, one, lambda job: serialize.job(job, artifacts.get(job.id, ()), here.store))
        if isinstance(one, Job)
        else _refused(index, one)
        for index, one in enumerate(outcomes)
    ]
    text = "".join(f"{line.model_dump_json(exclude_unset=True)}\n" for line in lines)
    return Response(text, content_type=reading.NDJSON)


def _accepted(index: int, job: Job, render: Callable[[Job], schemas.Job]) -> schemas.BulkAnswer:
    return schemas.BulkAnswer(index=index, status=202, job=render(job))


def _refused(index: int, exc: CalotypeError) -> schemas.BulkAnswer:
    body = problem_body(
        status=exc.status,
        code=exc.code,
        title=exc.title,
        detail=exc.public_detail,
        instance=request.path,
        errors=getattr(exc, "errors", ()),
    )
    more: dict[str, Any] = {"retry_after": exc.retry_after} if isinstance(exc, LimitExceeded) else {}
    return schemas.BulkAnswer(index=index, status=exc.status, problem=schemas.Problem(**body), **more)
