"""What happened to a job: as a list, or as a stream that goes on until the job has ended."""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated
from uuid import UUID

from flask import Blueprint, Response, request
from flask.typing import ResponseReturnValue
from pydantic import Field

from api import reading, schemas, serialize
from api.auth import principal
from api.calls import Answer, call
from api.reading import WholeNumber
from api.resources.jobs import parse_job_id
from api.services import Services, services
from api.watch import Waiter
from calotype import events
from calotype.database import transaction
from calotype.errors import DependencyDown, FieldError, Invalid, NotFound
from calotype.events import MAX_EVENTS, Event, Reading, Version
from calotype.tenants import Scope

logger = logging.getLogger(__name__)

blueprint = Blueprint("events", __name__)

STREAM = "text/event-stream"
#: Seconds between two comments on a silent stream at most: a client that is gone is noticed by the answer to one.
HEARTBEAT_SECONDS = 15.0
#: How much sooner one may come. Streams that began together, after a restart, do not go on speaking together.
HEARTBEAT_SPREAD = 0.3
HEARTBEAT = b": nothing new\n\n"
#: A stream ends after this long, and its client comes back: with a key that was revoked meanwhile it does not.
LONGEST_STREAM_SECONDS = 3600.0
#: When a client comes back to a stream that ended before the job, milliseconds; and when there was no room for it.
RETRY_MS = 1000
NO_ROOM_RETRY_MS = 5000
#: While Postgres is away.
NOTHING_KNOWN = Reading(events=(), has_more=False, ended=False, version=Version(-1, -1))
#: The largest number of an event that Postgres can hold.
LAST = 2**63 - 1


class EventQuery(reading.Query):
    """Which events."""

    after: Annotated[int, WholeNumber] = Field(
        default=0, ge=0, le=LAST, description="Only events with a greater `seq`. `Last-Event-ID` goes before it."
    )
    limit: Annotated[int, WholeNumber] = Field(
        default=100, ge=1, le=MAX_EVENTS, description="Events a page of the JSON list; a stream has no pages."
    )


@blueprint.get("/jobs/<job_id>/events")
@call(
    "Jobs",
    "Follow a job",
    scope=Scope.JOBS_READ,
    description="A stream of server-sent events: `id` is the event's `seq`, `event` its type, `data` the event as in "
    "the JSON list. All that has happened comes first, then what happens, until the state is one that no job leaves; "
    "then the stream ends. A stream that ends or breaks before that is resumed without a gap by `Last-Event-ID`, "
    "which browsers send by themselves. Comments come every 15 s when nothing else does.\n\n"
    "With `Accept: application/json` the answer is a page of what has happened so far.",
    headers={
        "Last-Event-ID": "The `id` of the last event that was seen.",
        "Accept": f"`{STREAM}` (when it is left out, too) or `application/json`.",
    },
    query=EventQuery,
    answers=[
        Answer(status=200, description="The events.", model=schemas.EventPage, others=(STREAM,)),
        Answer(status=204, description="The job has ended and there is nothing after the given event."),
    ],
)
def list_events(job_id: str, query: EventQuery) -> ResponseReturnValue:
    here, tenant_id, wanted = services(), principal().tenant_id, parse_job_id(job_id)
    last = _last_event_id()
    after = query.after if last is None else last
    as_json = request.accept_mimetypes.best_match([STREAM, "application/json"], STREAM) == "application/json"
    with transaction(here.engine) as conn:
        found = events.list_events(conn, tenant_id, wanted, after, query.limit)
    if as_json:
        return serialize.answer(_page(found))
    if found.ended and not found.events:
        # The one answer that keeps a browser from coming back for more.
        return Response(status=204)
    response = Response(_stream(here, tenant_id, wanted, after), mimetype=STREAM)
    # Proxies that collect answers before they pass them on must not do so here.
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _last_event_id() -> int | None:
    given = request.headers.get("Last-Event-ID", "")
    if not given:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", given) or int(given) > LAST:
        loc = ("header", "Last-Event-ID")
        raise Invalid(errors=[FieldError(loc=loc, msg="must be the id of an event of this job, a whole number")])
    return int(given)


def _page(found: Reading) -> schemas.EventPage:
    return schemas.EventPage(
        data=[serialize.event(event) for event in found.events],
        has_more=found.has_more,
        next_cursor=str(found.events[-1].seq) if found.has_more else None,
    )


def _stream(here: Services, tenant_id: UUID, job_id: UUID, after: int) -> Iterator[bytes]:
    """The body of a stream. It runs after the view has returned, and between two reads it holds its thread only."""
    with here.waiters.permit(tenant_id) as granted, here.watcher.watch(job_id) as waiter:
        logger.debug("streaming", extra={"job": job_id, "after": after, "granted": granted})
        yield b"retry: %d\n\n" % (RETRY_MS if granted else NO_ROOM_RETRY_MS)
        try:
            # A job that is deleted meanwhile has no more events either.
            with suppress(NotFound):
                yield from _frames(here, tenant_id, job_id, after, waiter if granted else None)
        finally:
            logger.debug("stream ended", extra={"job": job_id})


def _frames(here: Services, tenant_id: UUID, job_id: UUID, after: int, waiter: Waiter | None) -> Iterator[bytes]:
    """Events, and comments between them, until the job or the stream ends; without a waiter those that are there."""
    until = time.monotonic() + LONGEST_STREAM_SECONDS
    while True:
        if waiter is not None:
            waiter.begin()
        found = _read(here, tenant_id, job_id, after)
        if found.events:
            after = found.events[-1].seq
            yield b"".join(_frame(event) for event in found.events)
        if found.has_more:
            continue
        if found.ended or waiter is None or here.stopping.is_set() or time.monotonic() > until:
            return
        waiter.saw(found.version)
        early = HEARTBEAT_SPREAD * random.random()  # noqa: S311 - no secret
        if not waiter.wait(HEARTBEAT_SECONDS * (1 - early)):
            yield HEARTBEAT


def _read(here: Services, tenant_id: UUID, job_id: UUID, after: int) -> Reading:
    try:
        with here.turns.turn(), transaction(here.engine) as conn:
            return events.list_events(conn, tenant_id, job_id, after)
    except DependencyDown:
        # The stream lives on, and is woken when Postgres tells of the job again; its client could do no better.
        return NOTHING_KNOWN


def _frame(event: Event) -> bytes:
    # ASCII: there are clients that take U+2028 or U+0085 for the end of a line.
    data = json.dumps(serialize.event(event).model_dump(mode="json"), separators=(",", ":"))
    return f"id: {event.seq}\nevent: {event.type}\ndata: {data}\n\n".encode("ascii")
