"""Following a job: everything that happened, in order, once, and at once."""

from __future__ import annotations

import dataclasses
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from api_helpers import problem
from flask import Flask
from flask.testing import FlaskClient
from own_redis import Broker
from postgres_outage import Outage
from sqlalchemy import Engine

from api.app import create_app
from api.resources import events as resource
from api.services import EXTENSION, Services
from calotype import queue
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.jobs import Job, JobError, Progress
from calotype.settings import Settings
from calotype.streams import MEDIA_TYPE, read_events
from calotype.tenants import Tenant


class Stream:
    """A client that reads the events of a job."""

    def __init__(self, client: FlaskClient, job: Job, after: int | None = None, query: str = "") -> None:
        headers = {"Accept": MEDIA_TYPE} | ({"Last-Event-ID": str(after)} if after is not None else {})
        self.response = client.get(f"/v1/jobs/{job.id}/events{query}", headers=headers)
        assert self.response.status_code == 200, self.response.text
        assert self.response.mimetype == MEDIA_TYPE
        self.raw = b""
        self._events = read_events(self._chunks())

    def read(self, count: int) -> list[dict[str, Any]]:
        return [next(self._events) for _ in range(count)]

    def rest(self) -> list[dict[str, Any]]:
        """Reads until the server ends the stream."""
        return list(self._events)

    def disconnect(self) -> None:
        self.response.close()

    def _chunks(self) -> Iterator[bytes]:
        for chunk in self.response.iter_encoded():
            self.raw += chunk
            yield chunk


@pytest.fixture
def here(app: Flask) -> Services:
    return app.extensions[EXTENSION]


@pytest.fixture
def running(engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID]) -> Job:
    """A job that a worker holds; it has two events."""
    make_job()
    with transaction(engine) as conn:
        job = queue.claim(conn, make_worker(), ["diffusion.generate"], 60)
    assert job is not None
    return job


@pytest.fixture
def say(engine: Engine, here: Services) -> Callable[..., None]:
    """``say(job, "one", "two")``: log lines of a running job, as its worker writes and announces them."""

    def write(job: Job, *messages: str) -> None:
        with transaction(engine) as conn:
            queue.tell(conn, job.id, job.epoch, [("log", {"message": message}) for message in messages])
        here.doorbell.announce(job.id)

    return write


@pytest.fixture
def fail(engine: Engine, here: Services) -> Callable[[Job], None]:
    def end(job: Job) -> None:
        error = JobError(code="bad_input", title="Bad input", detail="no", retryable=False)
        with transaction(engine) as conn:
            queue.fail(conn, job.id, job.epoch, error)
        here.doorbell.announce(job.id)

    return end


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"]["message"] for event in events if event["type"] == "log"]


# --- As a list ---


def test_the_list_tells_what_happened_in_order(
    client: FlaskClient, engine: Engine, running: Job, say: Callable[..., None], fail: Callable[[Job], None]
) -> None:
    with transaction(engine) as conn:
        queue.progress(conn, running.id, running.epoch, Progress(fraction=0.5, step=1, total=2, stage="denoising"))
    say(running, "half way")
    fail(running)

    url = client.get(f"/v1/jobs/{running.id}").json["urls"]["events"]  # type: ignore[index]
    listed = client.get(url, headers={"Accept": "application/json"}).json

    assert listed is not None
    assert [(event["seq"], event["type"]) for event in listed["data"]] == [
        (1, "state"),
        (2, "state"),
        (3, "progress"),
        (4, "log"),
        (5, "state"),
    ]
    assert listed["data"][0]["data"] == {"state": "queued", "attempt": 0}
    assert listed["data"][1]["data"] == {"state": "running", "attempt": 1}
    assert listed["data"][2]["data"]["step"] == 1
    assert listed["data"][3]["data"] == {"message": "half way"}
    assert listed["data"][4]["data"]["state"] == "failed"
    assert listed["data"][4]["data"]["error"]["code"] == "bad_input"
    assert (listed["has_more"], listed["next_cursor"]) == (False, None)


def test_the_list_has_pages(client: FlaskClient, running: Job, say: Callable[..., None]) -> None:
    say(running, *(str(number) for number in range(5)))
    seen: list[dict[str, Any]] = []
    query = "limit=3"
    while query:
        page = client.get(f"/v1/jobs/{running.id}/events?{query}", headers={"Accept": "application/json"}).json
        assert page is not None and len(page["data"]) <= 3
        seen += page["data"]
        query = f"limit=3&after={page['next_cursor']}" if page["has_more"] else ""
    assert [event["seq"] for event in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert messages(seen) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("accept", ["application/json", MEDIA_TYPE])
def test_nobody_sees_the_events_of_another_tenant(
    stranger: FlaskClient, anonymous: FlaskClient, running: Job, accept: str
) -> None:
    path, headers = f"/v1/jobs/{running.id}/events", {"Accept": accept}
    assert problem(stranger.get(path, headers=headers))[:2] == (404, "not_found")
    assert problem(stranger.get("/v1/jobs/nonsense/events", headers=headers))[:2] == (404, "not_found")
    assert problem(anonymous.get(path, headers=headers))[:2] == (401, "unauthenticated")


@pytest.mark.parametrize(
    ("query", "headers", "loc"),
    [
        ("?after=-1", {}, "query.after"),
        ("?after=9223372036854775808", {}, "query.after"),
        ("?limit=0", {}, "query.limit"),
        ("?limit=1001", {}, "query.limit"),
        ("?since=1", {}, "query.since"),
        ("", {"Last-Event-ID": "one"}, "header.Last-Event-ID"),
        ("", {"Last-Event-ID": "-1"}, "header.Last-Event-ID"),
        ("", {"Last-Event-ID": "9223372036854775808"}, "header.Last-Event-ID"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    client: FlaskClient, running: Job, query: str, headers: dict[str, str], loc: str
) -> None:
    response = client.get(f"/v1/jobs/{running.id}/events{query}", headers=headers)
    assert problem(response) == (422, "invalid_request", [loc])


# --- As a stream ---


def test_a_stream_tells_the_past_then_the_present_and_ends_with_the_job(
    client: FlaskClient, running: Job, say: Callable[..., None], fail: Callable[[Job], None]
) -> None:
    say(running, "before")
    stream = Stream(client, running)
    assert [event["type"] for event in stream.read(3)] == ["state", "state", "log"]
    say(running, "during")
    assert messages(stream.read(1)) == ["during"]
    fail(running)
    rest = stream.rest()
    assert [(event["seq"], event["data"]["state"]) for event in rest] == [(5, "failed")]


def test_a_stream_is_what_browsers_read(client: FlaskClient, running: Job, say: Callable[..., None]) -> None:
    say(running, "two\nlines, and what some take for a line's end: \x85 \u2028")
    stream = Stream(client, running)
    event = stream.read(3)[2]
    lines = stream.raw.split(b"\n\n")[-2].decode("ascii").split("\n")
    assert lines[0] == "id: 3"
    assert lines[1] == "event: log"
    assert lines[2].startswith("data: {") and len(lines) == 3
    assert event["data"]["message"] == "two\nlines, and what some take for a line's end: \x85 \u2028"
    assert event["created_at"]
    assert stream.raw.startswith(b"retry: 1000\n\n")
    stream.disconnect()


@pytest.mark.parametrize(("after", "query"), [(2, ""), (2, "?after=1"), (None, "?after=2")])
def test_a_stream_goes_on_after_the_last_event_that_was_seen(
    client: FlaskClient, running: Job, say: Callable[..., None], after: int | None, query: str
) -> None:
    say(running, "one", "two")
    stream = Stream(client, running, after=after, query=query)
    assert [event["seq"] for event in stream.read(2)] == [3, 4]
    stream.disconnect()


def test_a_client_that_has_seen_the_end_is_told_to_stay_away(
    client: FlaskClient, running: Job, fail: Callable[[Job], None]
) -> None:
    fail(running)
    assert [event["seq"] for event in Stream(client, running).rest()] == [1, 2, 3]
    again = client.get(f"/v1/jobs/{running.id}/events", headers={"Last-Event-ID": "3"})
    assert (again.status_code, again.data) == (204, b"")


def test_no_event_is_missed_or_doubled_however_often_a_reader_comes_back(
    client: FlaskClient, engine: Engine, running: Job, say: Callable[..., None], fail: Callable[[Job], None]
) -> None:
    writers, rounds = 4, 25

    def write(writer: int) -> None:
        choose = random.Random(writer)
        for number in range(rounds):
            say(running, *(f"{writer}.{number}.{line}" for line in range(choose.randint(1, 3))))
            with transaction(engine) as conn:
                value = Progress(fraction=0.5, step=number, total=rounds, stage="denoising")
                queue.progress(conn, running.id, running.epoch, value)

    def write_all() -> None:
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        fail(running)

    seen: list[dict[str, Any]] = []
    choose = random.Random(7)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write_all)
        while not seen or seen[-1]["data"].get("state") != "failed":
            stream = Stream(client, running, after=seen[-1]["seq"] if seen else None)
            for event in read_some(stream, choose.randint(1, 12)):
                seen.append(event)
            stream.disconnect()
        written.result(60)

    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    for writer in range(writers):
        own = [message for message in messages(seen) if message.startswith(f"{writer}.")]
        assert own == sorted(own, key=lambda text: [int(part) for part in text.split(".")])
    with transaction(engine) as conn:
        assert queue.get(conn, running.tenant_id, running.id).event_seq == len(seen)


def read_some(stream: Stream, count: int) -> Iterator[dict[str, Any]]:
    """So many events, or fewer where the stream ends."""
    for _ in range(count):
        event = next(stream._events, None)
        if event is None:
            return
        yield event


def test_many_events_come_whole(client: FlaskClient, running: Job, say: Callable[..., None]) -> None:
    """More than are read at once."""
    count = resource.MAX_EVENTS + 50
    for start in range(0, count, 350):
        say(running, *(str(number) for number in range(start, min(start + 350, count))))
    stream = Stream(client, running, after=2)
    assert messages(stream.read(count)) == [str(number) for number in range(count)]
    stream.disconnect()


def test_a_silent_stream_sends_comments(
    client: FlaskClient, running: Job, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Job], None]
) -> None:
    monkeypatch.setattr(resource, "HEARTBEAT_SECONDS", 0.05)
    stream = Stream(client, running)
    stream.read(2)
    while stream.raw.count(b": nothing new\n\n") < 3:
        stream.raw += next(stream.response.iter_encoded())
    fail(running)
    assert [event["data"]["state"] for event in stream.rest()] == ["failed"]


def test_a_stream_of_a_job_that_is_deleted_ends(
    client: FlaskClient, engine: Engine, make_job: Callable[..., Job]
) -> None:
    job = make_job()
    stream = Stream(client, job)
    stream.read(1)
    with transaction(engine) as conn:
        # In one transaction: the stream never sees the end of the job.
        queue.cancel(conn, job.tenant_id, job.id)
        queue.delete(conn, job.tenant_id, job.id)
    assert stream.rest() == []
    assert client.get(f"/v1/jobs/{job.id}/events").status_code == 404


def test_a_stopping_server_ends_its_streams(client: FlaskClient, here: Services, running: Job) -> None:
    streams = [Stream(client, running) for _ in range(3)]
    for stream in streams:
        assert len(stream.read(2)) == 2
    here.stop()
    assert [stream.rest() for stream in streams] == [[], [], []]
    # And those that come too late.
    assert len(Stream(client, running).rest()) == 2


def test_a_stream_lives_on_without_postgres(
    client: FlaskClient, here: Services, running: Job, say: Callable[..., None], database_url: str
) -> None:
    stream, outage = Stream(client, running), Outage(database_url)
    stream.read(2)
    outage.begin()
    # Woken, it finds no database.
    here.doorbell.announce(running.id)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(stream.read, 1)
        threading.Event().wait(1.0)
        assert not read.done()
        outage.end()
        here.engine.dispose()
        say(running, "back")
        assert messages(read.result(30)) == ["back"]
    stream.disconnect()


def test_a_stream_lives_on_while_redis_dies_and_comes_back(
    settings: Settings, engine: Engine, store: ObjectStore, client: FlaskClient, running: Job, broker: Broker
) -> None:
    app = create_app(dataclasses.replace(settings, broker_url=broker.url), engine=engine, store=store)
    here, reader = app.extensions[EXTENSION], app.test_client()
    reader.environ_base.update(client.environ_base)

    def say(message: str) -> None:
        with transaction(engine) as conn:
            queue.tell(conn, running.id, running.epoch, [("log", {"message": message})])
        here.doorbell.announce(running.id)

    stream = Stream(reader, running, after=2)
    say("with Redis")
    assert messages(stream.read(1)) == ["with Redis"]
    broker.kill()
    for message in ("without", "still without"):
        say(message)
        assert messages(stream.read(1)) == [message]
    broker.start()
    say("with Redis again")
    assert messages(stream.read(1)) == ["with Redis again"]
    stream.disconnect()
    here.watcher.close()
    here.doorbell.close()


def test_streams_that_wait_hold_no_database_connection_and_no_turn(
    client: FlaskClient,
    here: Services,
    settings: Settings,
    running: Job,
    say: Callable[..., None],
    eventually: Callable[..., object],
) -> None:
    count = max(settings.database_pool, settings.api_threads) + 4
    streams = [Stream(client, running, after=2) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        read = [pool.submit(stream.read, 1) for stream in streams]
        try:
            assert client.get(f"/v1/jobs/{running.id}").status_code == 200
            eventually(lambda: here.engine.pool.checkedout() == 0)  # type: ignore[attr-defined]
            assert not any(one.done() for one in read)
        finally:
            say(running, "all of you")
        assert {messages(one.result(30))[0] for one in read} == {"all of you"}
    for stream in streams:
        stream.disconnect()


@pytest.fixture
def make_narrow(
    settings: Settings, engine: Engine, store: ObjectStore, here: Services
) -> Iterator[Callable[[int], Flask]]:
    """``make_narrow(waiters)``: an application at which so many clients may wait."""
    made: list[Flask] = []

    def make(waiters: int) -> Flask:
        own = dataclasses.replace(settings, api_waiters=waiters)
        made.append(create_app(own, engine=engine, store=store, doorbell=here.doorbell))
        return made[-1]

    yield make
    for app in made:
        app.extensions[EXTENSION].watcher.close()


def test_where_no_more_may_wait_a_stream_tells_what_is_and_asks_to_come_back_later(
    make_narrow: Callable[[int], Flask], client: FlaskClient, running: Job
) -> None:
    crowded = make_narrow(1).test_client()
    crowded.environ_base.update(client.environ_base)
    first = Stream(crowded, running)
    first.read(2)

    second = Stream(crowded, running)
    assert [event["seq"] for event in second.rest()] == [1, 2]
    assert second.raw.startswith(b"retry: 5000\n\n")
    assert crowded.get(f"/v1/jobs/{running.id}?wait=60").status_code == 200

    first.disconnect()
    third = Stream(crowded, running)
    assert third.raw == b"" and third.read(2) and third.raw.startswith(b"retry: 1000\n\n")
    third.disconnect()


def test_a_tenant_whose_clients_take_what_they_can_leaves_others_room_to_wait(
    make_narrow: Callable[[int], Flask],
    make_client: Callable[..., FlaskClient],
    make_tenant: Callable[..., Tenant],
    client: FlaskClient,
    running: Job,
    make_job: Callable[..., Job],
) -> None:
    app, neighbour = make_narrow(8), make_tenant()
    crowded, other = app.test_client(), app.test_client()
    crowded.environ_base.update(client.environ_base)
    other.environ_base.update(make_client(neighbour).environ_base)
    theirs = make_job(tenant_id=neighbour.id)

    taken = [Stream(crowded, running) for _ in range(7)]
    for stream in taken:
        assert stream.read(2) and stream.raw.startswith(b"retry: 1000\n\n")
    beyond = Stream(crowded, running)
    assert [event["seq"] for event in beyond.rest()] == [1, 2]
    assert beyond.raw.startswith(b"retry: 5000\n\n")

    first = Stream(other, theirs)
    assert first.read(1) and first.raw.startswith(b"retry: 1000\n\n")
    for stream in (*taken, first):
        stream.disconnect()
