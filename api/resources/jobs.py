"""Jobs: submit, look, wait, list, cancel, retry, delete."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Annotated
from uuid import UUID

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue
from pydantic import AwareDatetime, BeforeValidator, Field
from sqlalchemy import Connection

from api import paging, quotes, reading, schemas, serialize, submitting, waiting
from api.auth import principal
from api.calls import Answer, JsonBody, call
from api.examples import JOB_EXAMPLES
from api.paging import PageQuery
from api.services import Services, services
from calotype import queue, specs, submission
from calotype.database import in_transaction, transaction
from calotype.errors import Gone, NotFound
from calotype.jobs import Artifact, Family, Job, Kind, State
from calotype.tenants import Scope

blueprint = Blueprint("jobs", __name__)

JOB_HEADERS = {"Location": "Path of the job.", "ETag": "Changes with the job; give it as `If-None-Match`."}


def _parse_wait(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"\d{1,2}(\.\d{1,3})?", value):
        raise ValueError(f"must be a number of seconds from 0 to {reading.MAX_WAIT_SECONDS}")
    return value


class JobQuery(reading.Query):
    """How to look at a job."""

    wait: Annotated[float, BeforeValidator(_parse_wait), Field(ge=0, le=reading.MAX_WAIT_SECONDS)] | None = Field(
        default=None,
        description="Answer when the job changes, at the latest after so many seconds. With `If-None-Match` "
        "a change is one from that ETag, so that none is missed between two polls. A job that has ended is "
        "answered at once.",
    )


def _parse_flag(value: object) -> object:
    if isinstance(value, str) and value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value


class SubmitQuery(reading.Query):
    """How to submit."""

    dry_run: Annotated[bool, BeforeValidator(_parse_flag)] = Field(
        default=False,
        description="`true`: checks everything and quotes the wait and the cost, but creates nothing.",
    )


class JobListQuery(PageQuery):
    """Which jobs; newest first."""

    state: list[State] = Field(default=[], description="Any of these states; may be repeated.")
    kind: Kind | None = Field(default=None, description="Only this kind.")
    family: Family | None = Field(default=None, description="Only this model family.")
    model: str | None = Field(default=None, description="A model name, or `name@version`.")
    since: Annotated[AwareDatetime, reading.Rfc3339] | None = Field(
        default=None, description="Jobs submitted at or after this time, RFC 3339."
    )


@blueprint.post("/jobs")
@call(
    "Jobs",
    "Submit a job",
    scope=Scope.JOBS_WRITE,
    description="The job is checked and recorded, then queued; everything left out of the input is filled in "
    "and shown in `spec`, the seed included, so that the spec makes the same images again.\n\n"
    "With `Prefer: wait=N` the answer waits for the job to end: 200 when it did, 202 when it goes on.\n\n"
    "With `dry_run=true` the answer is a quote: when the job would start and what it would cost, as intervals, and "
    "whether an equal job would answer it. Nothing is created then.",
    query=SubmitQuery,
    headers={
        "Idempotency-Key": "Any text of your choice. A repeated call with the same key and body gives the "
        "same job; with another body it is refused.",
        "Prefer": "`wait=N`: wait up to N seconds (at most 60) for the job to end.",
    },
    body=JsonBody(schema=specs.JobRequest, parse=lambda: specs.parse(reading.read_json()), examples=JOB_EXAMPLES),
    answers=[
        Answer(
            status=202,
            description="The job is queued; or it has ended already, answered from an equal one.",
            model=schemas.Job,
            headers={**JOB_HEADERS, "Preference-Applied": "`wait=N` when it was."},
        ),
        Answer(
            status=200,
            description="The job ended within the wait; or the quote of a dry run, without these headers.",
            model=schemas.Job | quotes.Quote,
            headers=JOB_HEADERS,
        ),
    ],
    codes=[
        "family_unavailable",
        "unknown_model",
        "unknown_dataset",
        "unsupported_size",
        "idempotency_mismatch",
        "limit_exceeded",
        "not_found",
    ],
)
def submit_job(body: specs.JobRequest, query: SubmitQuery) -> ResponseReturnValue:
    key = reading.read_idempotency_key()
    wait = reading.read_wait_preference()
    here = services()
    if query.dry_run:
        return quotes.dry_run(here, principal().tenant_id, body)
    job = submitting.submit(here, principal().tenant_id, body, key)
    _ring_for(here, job)
    if wait:
        job = waiting.wait_until(here, job, wait, lambda now: now.state.terminal)
    response = _job_answer(here, job, 200 if wait and job.state.terminal else 202)
    if wait is not None:
        response.headers["Preference-Applied"] = f"wait={wait}"
    return response


def _ring_for(here: Services, job: Job) -> None:
    # Nobody watches a job whose id has not been told yet: a ring is all that there is to say.
    if not job.state.terminal:
        here.doorbell.ring(job.queue)


@blueprint.get("/jobs")
@call(
    "Jobs",
    "List jobs",
    scope=Scope.JOBS_READ,
    query=JobListQuery,
    answers=[Answer(status=200, description="Newest first.", model=schemas.JobPage)],
)
def list_jobs(query: JobListQuery) -> ResponseReturnValue:
    here = services()
    found = queue.JobFilter(
        states=tuple(query.state),
        kind=query.kind,
        family=query.family,
        model=query.model,
        since=query.since,
    )
    with transaction(here.engine) as conn:
        page = queue.list_jobs(conn, principal().tenant_id, found, _position(query), query.limit)
        artifacts = queue.artifacts_of(conn, [job.id for job in page.items])
    data = [serialize.job(job, artifacts.get(job.id, ()), here.store) for job in page.items]
    cursor = paging.encode(str(page.items[-1].id), query) if page.has_more else None
    return serialize.answer(schemas.JobPage(data=data, has_more=page.has_more, next_cursor=cursor))


@blueprint.get("/jobs/<job_id>")
@call(
    "Jobs",
    "Look at a job",
    scope=Scope.JOBS_READ,
    query=JobQuery,
    headers={"If-None-Match": "An ETag of this job: 304 while nothing has changed."},
    answers=[
        Answer(status=200, description="The job.", model=schemas.Job, headers=JOB_HEADERS),
        Answer(status=304, description="Nothing changed since that ETag."),
    ],
)
def get_job(job_id: str, query: JobQuery) -> ResponseReturnValue:
    here = services()
    job = waiting.fetch(here, principal().tenant_id, parse_job_id(job_id))
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")} - {""}
    seen = known or {_etag(job)}
    if query.wait:
        job = waiting.wait_until(here, job, query.wait, lambda now: now.state.terminal or _etag(now) not in seen)
    # A job that has ended is always shown: its URLs expire while its ETag stays.
    if _etag(job) in known and not job.state.terminal:
        return Response(status=304, headers={"ETag": _etag(job)})
    return _job_answer(here, job, 200)


@blueprint.post("/jobs/<job_id>/cancel")
@call(
    "Jobs",
    "Cancel a job",
    scope=Scope.JOBS_WRITE,
    description="A queued job ends at once; a running one at its next step (`canceling` until then). A job "
    "that has ended already stays as it is: the call may be repeated.",
    answers=[Answer(status=200, description="The job as it is now.", model=schemas.Job, headers=JOB_HEADERS)],
)
def cancel_job(job_id: str) -> ResponseReturnValue:
    here, tenant_id, wanted = services(), principal().tenant_id, parse_job_id(job_id)
    job = in_transaction(here.engine, lambda conn: queue.cancel(conn, tenant_id, wanted))
    here.doorbell.announce(job.id)
    # One that waited for its result may run in its stead.
    here.doorbell.ring(job.queue)
    return _job_answer(here, job, 200)


@blueprint.post("/jobs/<job_id>/retry")
@call(
    "Jobs",
    "Run a job again",
    scope=Scope.JOBS_WRITE,
    description="Makes a new job with the same spec and `retried_from`. The job must have ended.",
    answers=[Answer(status=202, description="The new job.", model=schemas.Job, headers=JOB_HEADERS)],
    codes=["conflict", "limit_exceeded", "unknown_dataset", "unknown_model"],
)
def retry_job(job_id: str) -> ResponseReturnValue:
    here, tenant_id, wanted = services(), principal().tenant_id, parse_job_id(job_id)

    def again(conn: Connection) -> Job:
        old = queue.get(conn, tenant_id, wanted)
        # Refused now rather than failed later when what it needs has been deleted since.
        submission.prepare(conn, tenant_id, specs.parse(old.spec))
        return queue.retry(conn, tenant_id, old.id)

    job = in_transaction(here.engine, again)
    _ring_for(here, job)
    return _job_answer(here, job, 202)


@blueprint.delete("/jobs/<job_id>")
@call(
    "Jobs",
    "Delete a job",
    scope=Scope.JOBS_WRITE,
    description="Removes the job and its artifacts. The job must have ended, and no job that has not ended may start "
    "from an image of it.",
    answers=[Answer(status=204, description="It is gone.")],
    codes=["conflict"],
)
def delete_job(job_id: str) -> ResponseReturnValue:
    here = services()
    with transaction(here.engine) as conn:
        keys = queue.delete(conn, principal().tenant_id, parse_job_id(job_id))
    # After the commit: an object without a row is collected later, a row without its object would be a lie.
    here.store.discard(keys)
    return Response(status=204)


@blueprint.get("/jobs/<job_id>/artifacts/<artifact_name>")
@call(
    "Jobs",
    "Fetch an artifact",
    scope=Scope.JOBS_READ,
    description="Streams the file through the API, for clients that cannot reach the object store.",
    answers=[Answer(status=200, description="The file, with its content type.", media_type="application/octet-stream")],
    codes=["artifacts_expired"],
)
def get_artifact(job_id: str, artifact_name: str) -> ResponseReturnValue:
    here = services()
    with transaction(here.engine) as conn:
        job = queue.get(conn, principal().tenant_id, parse_job_id(job_id))
        artifacts = queue.artifacts_of(conn, [job.id]).get(job.id, ())
    found = next((one for one in artifacts if one.name == artifact_name), None)
    if found is None and job.artifacts_expired_at is not None:
        raise Gone(
            f"The artifacts of job {job.id} were deleted at their time, {job.artifacts_expired_at:%Y-%m-%d %H:%M} UTC. "
            "Make them anew with /retry."
        )
    if found is None:
        raise NotFound(f"Job {job.id} has no artifact {artifact_name}.")
    # Opened before the answer begins, so that a missing object is an error and not a torn file.
    opened = ExitStack()
    stream = opened.enter_context(here.store.open_stream(found.object_key))
    response = Response(_chunks(stream), content_type=found.content_type)
    response.call_on_close(opened.close)
    response.content_length = found.bytes
    response.headers.set("Content-Disposition", "attachment", filename=found.name)
    # A job's own files are shown as files, never run as pages of this origin.
    response.headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    return response


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(1 << 18):
        yield chunk


def _position(query: JobListQuery) -> str | None:
    position = paging.decode(query)
    try:
        return str(UUID(position)) if position is not None else None
    except ValueError as exc:
        raise paging.refused() from exc


def parse_job_id(text: str) -> UUID:
    """The id in a path; NotFound when it is not one."""
    try:
        return UUID(text)
    except ValueError as exc:
        raise NotFound("There is no such job.") from exc


def _etag(job: Job) -> str:
    return f'"{job.revision}"'


def _job_answer(here: Services, job: Job, status: int) -> Response:
    body = serialize.job(job, _artifacts(here, job), here.store)
    return serialize.answer(body, status, Location=serialize.job_path(job), ETag=_etag(job))


def _artifacts(here: Services, job: Job) -> Sequence[Artifact]:
    if job.state is not State.SUCCEEDED:
        return ()
    with transaction(here.engine) as conn:
        return queue.artifacts_of(conn, [job.id]).get(job.id, ())
