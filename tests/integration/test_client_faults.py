"""The Python client against a server that misbehaves on purpose."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calotype.client import ApiError, Client, ConnectionFailedError, DownloadError

GOOD = b"the whole file"


class Server(ThreadingHTTPServer):
    """Answers with the next of ``answers``: a status and body, or None to drop the connection."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, bytes] | None] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        self.server.asked.append((self.command, self.path, dict(self.headers)))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.server.answers.pop(0)
        if answer is None:
            self.close_connection = True
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - names that the base class looks for

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, "cal_secret", retries=2) as made:
        yield made


@pytest.fixture
def job(server: Server) -> Callable[..., dict[str, Any]]:
    def make(name: str = "image.png", content: bytes = GOOD) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        return {"id": "1", "artifacts": [{"name": name, "url": f"{server.url}/file", "sha256": digest}]}

    return make


def test_a_submit_is_repeated_with_the_same_key_after_a_dropped_connection(server: Server, client: Client) -> None:
    server.answers = [None, (503, b"{}"), (202, b'{"id": "1"}')]

    assert client.submit({"kind": "generate"})["id"] == "1"

    keys = {headers["Idempotency-Key"] for _, _, headers in server.asked}
    assert len(server.asked) == 3
    assert len(keys) == 1


def test_what_is_not_safe_to_repeat_is_sent_once(server: Server, client: Client) -> None:
    server.answers = [None]

    with pytest.raises(ConnectionFailedError):
        client.create_tenant("a")

    assert len(server.asked) == 1


def test_a_refusal_is_not_repeated(server: Server, client: Client) -> None:
    server.answers = [(409, json.dumps({"code": "conflict", "detail": "it runs"}).encode())]

    with pytest.raises(ApiError, match="it runs") as caught:
        client.delete("1")

    assert caught.value.code == "conflict"


def test_an_answer_that_is_not_json_is_told_as_a_wrong_address(server: Server, client: Client) -> None:
    server.answers = [(200, b"<html>")]

    with pytest.raises(ConnectionFailedError, match="address"):
        client.get("1")


def test_the_key_does_not_travel_to_the_object_store(
    server: Server, client: Client, job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    server.answers = [(200, GOOD)]

    client.download(job(), tmp_path)

    assert "Authorization" not in server.asked[0][2]


def test_a_file_that_comes_damaged_is_fetched_again_and_never_shown(
    server: Server, client: Client, job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    server.answers = [(200, b"damaged"), (200, json.dumps(job()).encode()), (200, GOOD)]

    paths = client.download(job(), tmp_path)

    assert paths[0].read_bytes() == GOOD


def test_a_file_that_stays_damaged_is_an_error_and_leaves_nothing(
    server: Server, client: Client, job: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    server.answers = [(200, b"damaged"), (200, json.dumps(job()).encode())] * 3

    with pytest.raises(DownloadError, match="digest"):
        client.download(job(), tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ""])
def test_a_name_with_a_path_in_it_is_not_written(
    client: Client, job: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    with pytest.raises(DownloadError, match="plain file name"):
        client.download(job(name), tmp_path / "into")

    assert list((tmp_path / "into").iterdir()) == []


# --- Following ---


def frame(seq: int, kind: str = "log", **data: Any) -> bytes:
    event = {"seq": seq, "type": kind, "created_at": "2026-01-31T12:00:00Z", "data": data}
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(event)}\n\n".encode()


def test_a_job_is_followed_over_broken_connections_without_a_gap(server: Server, client: Client) -> None:
    server.answers = [
        (200, b"retry: 1000\n\n" + frame(1, "state", state="running") + frame(2, message="one") + frame(3)[:30]),
        None,
        (503, b"{}"),
        (200, b": nothing new\n\n" + frame(3, message="two")),
        (200, frame(4, "state", state="failed") + frame(5, message="after the end")),
    ]

    events = list(client.events("1"))

    assert [event["seq"] for event in events] == [1, 2, 3, 4]
    assert events[1]["data"] == {"message": "one"}
    assert [headers["Last-Event-ID"] for _, _, headers in server.asked] == ["0", "2", "2", "2", "3"]
    assert {headers["Accept"] for _, _, headers in server.asked} == {"text/event-stream"}


def test_following_a_job_from_its_end_ends_at_once(server: Server, client: Client) -> None:
    server.answers = [(204, b"")]

    assert list(client.events("1", after=9)) == []
    assert server.asked[0][2]["Last-Event-ID"] == "9"


def test_following_what_is_not_there_fails(server: Server, client: Client) -> None:
    server.answers = [(404, json.dumps({"code": "not_found", "detail": "no such job"}).encode())]

    with pytest.raises(ApiError, match="no such job"):
        list(client.events("1"))


def test_following_ends_when_nobody_answers_any_more(server: Server, client: Client) -> None:
    server.answers = [(200, frame(1)), None, None, None]

    following = client.events("1")

    assert next(following)["seq"] == 1
    with pytest.raises(ConnectionFailedError):
        next(following)


def test_what_has_happened_so_far_is_read_page_by_page(server: Server, client: Client) -> None:
    def page(seqs: list[int], following: str | None) -> tuple[int, bytes]:
        body = {"data": [{"seq": seq} for seq in seqs], "has_more": following is not None, "next_cursor": following}
        return 200, json.dumps(body).encode()

    server.answers = [page([3, 4], "4"), page([5], None)]

    assert [event["seq"] for event in client.events("1", after=2, follow=False)] == [3, 4, 5]
    assert [path for _, path, _ in server.asked] == [
        "/v1/jobs/1/events?after=2&limit=100",
        "/v1/jobs/1/events?after=4&limit=100",
    ]


def test_a_server_with_no_room_for_one_more_that_waits_is_not_asked_without_pause(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []
    monkeypatch.setattr("calotype.client.jobs.pause", pauses.append)
    answers = [{"id": "1", "state": "running"}, None, None, {"id": "1", "state": "succeeded"}]
    server.answers = [(304, b"") if job is None else (200, json.dumps(job).encode()) for job in answers]

    assert client.wait("1")["state"] == "succeeded"

    assert len(pauses) == 2
