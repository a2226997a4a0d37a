"""The API as a process: how it starts, what it weighs, how it stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest
from api_helpers import generate
from sqlalchemy import Engine

from calotype import queue, tenants
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.jobs import Job
from calotype.local.process import free_port
from calotype.settings import Settings, environment
from calotype.streams import read_events
from calotype.tenants import Tenant

ROOT = Path(__file__).resolve().parents[3]
MEGABYTE = 1 << 20


def start(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
    with log.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "api"],
            env={**outside, **environment(settings)},
            cwd=ROOT,
            stderr=stderr,
            stdout=subprocess.DEVNULL,
        )


@pytest.fixture
def address(settings: Settings) -> Settings:
    return replace(settings, port=free_port(), log_format="json", log_level="debug")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "api.log"


@pytest.fixture
def process(
    address: Settings, store: ObjectStore, log: Path, eventually: Callable[..., object]
) -> Iterator[psutil.Process]:
    started = start(address, log)
    try:
        eventually(lambda: _answers(address) or started.poll() is not None, timeout=30)
        assert started.poll() is None, log.read_text()
        yield psutil.Process(started.pid)
    finally:
        started.terminate()
        started.wait(20)


def _answers(address: Settings) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{address.port}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def http(address: Settings, tenant: Tenant, engine: Engine) -> Iterator[httpx.Client]:
    with transaction(engine) as conn:
        _, key = tenants.create_key(conn, tenant)
    headers = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{address.port}"
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30) as client:
        yield client


def test_the_process_is_small_also_after_uploads_and_stops_at_once(
    process: psutil.Process,
    http: httpx.Client,
    log: Path,
    eventually: Callable[..., object],
    make_job: Callable[..., Job],
    make_archive: Callable[..., bytes],
) -> None:
    job = make_job()
    for _ in range(20):
        assert http.get("/v1/jobs").status_code == 200
    for path in ("/openapi.json", "/docs", "/metrics", "/readyz"):
        assert http.get(path).status_code == 200
    files = {"file": ("a.zip", make_archive())}
    assert http.post("/v1/datasets", data={"name": "brand"}, files=files).status_code == 201
    huge = {"file": ("a.zip", b"x" * (100 * MEGABYTE))}
    assert http.post("/v1/datasets", data={"name": "huge"}, files=huge).status_code == 422
    sizes = [one.memory_info().rss / MEGABYTE for one in (process, *process.children(recursive=True))]
    assert len(sizes) == 2
    assert sum(sizes) < 150, sizes
    with ThreadPoolExecutor(1) as pool:
        # A long poll does not keep the server from stopping.
        polled = pool.submit(http.get, f"/v1/jobs/{job.id}?wait=60")
        eventually(lambda: '"message": "waiting"' in log.read_text())
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert polled.result(20).status_code == 200
        assert process.wait(20) == 0
    assert time.monotonic() - began < 10
    assert '"route": "/v1/jobs/<job_id>"' in log.read_text()
    assert "Traceback" not in log.read_text()


class Waiting:
    """A client that has asked for something that comes later."""

    def __init__(self, address: Settings, key: str, path: str, accept: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", address.port), timeout=60)
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nAccept: {accept}\r\n\r\n"
        self.socket.sendall(head.encode())

    def answer(self) -> tuple[int, bytes]:
        """Status and the whole body, when the server has ended it."""
        response = HTTPResponse(self.socket)
        response.begin()
        body = response.read()
        self.socket.close()
        return response.status, body


def test_two_hundred_waiting_clients_leave_the_others_their_turn(
    process: psutil.Process,
    http: httpx.Client,
    address: Settings,
    log: Path,
    tenant: Tenant,
    eventually: Callable[..., object],
    make_job: Callable[..., Job],
    make_model: Callable[..., object],
) -> None:
    make_model()
    jobs = [make_job(tenant_id=tenant.id) for _ in range(10)]
    key = http.headers["Authorization"]
    streams = [Waiting(address, key, f"/v1/jobs/{job.id}/events", "text/event-stream") for job in jobs * 10]
    polls = [Waiting(address, key, f"/v1/jobs/{job.id}?wait=60", "application/json") for job in jobs * 10]
    eventually(lambda: _said(log, "waiting", granted=True) == len(polls), timeout=60)
    eventually(lambda: _said(log, "streaming", granted=True) == len(streams), timeout=60)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/jobs", json=generate()).status_code, range(60)))
    assert set(answers) == {202}
    sizes = [one.memory_info().rss / MEGABYTE for one in (process, *process.children(recursive=True))]
    assert sum(sizes) < 200, sizes

    for job in jobs:
        assert http.post(f"/v1/jobs/{job.id}/cancel").status_code == 200
    for poll in polls:
        status, body = poll.answer()
        assert (status, json.loads(body)["state"]) == (200, "canceled")
    for stream in streams:
        status, body = stream.answer()
        assert status == 200
        assert [event["data"]["state"] for event in read_events([body])] == ["queued", "canceled"]
    assert "Traceback" not in log.read_text()


def test_a_client_that_is_gone_gives_its_thread_back(
    process: psutil.Process,
    http: httpx.Client,
    address: Settings,
    log: Path,
    tenant: Tenant,
    engine: Engine,
    eventually: Callable[..., object],
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
) -> None:
    make_job(tenant_id=tenant.id)
    with transaction(engine) as conn:
        job = queue.claim(conn, make_worker(), ["diffusion.generate"], 60)
    assert job is not None
    gone = Waiting(address, http.headers["Authorization"], f"/v1/jobs/{job.id}/events", "text/event-stream")
    eventually(lambda: _said(log, "streaming") == 1)
    gone.socket.close()

    def told() -> bool:
        with transaction(engine) as conn:
            queue.tell(conn, job.id, job.epoch, [("log", {"message": "x" * 1000})])
        return _said(log, "stream ended") == 1

    eventually(told, timeout=60)
    assert "Traceback" not in log.read_text()


def _said(log: Path, message: str, **extras: object) -> int:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return sum(line["message"] == message and extras.items() <= line.items() for line in lines)


def test_what_is_no_http_is_answered_as_a_problem(
    process: psutil.Process, http: httpx.Client, address: Settings, log: Path
) -> None:
    key = http.headers["Authorization"]
    chunked = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n"
    ).encode()
    requests = {
        b"nonsense\r\n\r\n": (400, "malformed_request"),
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": (414, "uri_too_long"),
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 10_000 + b"\r\n\r\n": (431, "headers_too_large"),
        chunked + b"Content-Length: 5\r\n\r\n": (400, "malformed_request"),
        chunked + b"\r\nnot a size\r\n\r\n": (400, "malformed_request"),
    }
    for raw, expected in requests.items():
        with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
            connection.sendall(raw)
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert answer.headers["X-Request-ID"]
            body = json.loads(answer.read())
        assert (answer.status, body["code"]) == expected
    assert "Traceback" not in log.read_text()


def test_a_taken_port_is_told_in_a_sentence(address: Settings, log: Path) -> None:
    with socket.create_server(("127.0.0.1", address.port)):
        refused = start(address, log)
        assert refused.wait(20) == 2
    assert log.read_text() == (
        f"calotype api: cannot listen on 127.0.0.1:{address.port}: another process does. Stop it, or choose "
        "another port (CALOTYPE_PORT, `calotype up --port`).\n"
    )


def test_a_missing_setting_is_told_in_a_sentence(address: Settings, log: Path) -> None:
    refused = start(replace(address, database_url=None), log)
    assert refused.wait(20) == 2
    assert log.read_text().startswith("calotype api: CALOTYPE_DATABASE_URL is not set")


def test_the_application_never_imports_tensors() -> None:
    program = (
        "import sys, api.app, api.server, api.pages; "
        "print([name for name in ('torch', 'numpy', 'diffusers', 'transformers', 'worker') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
