"""Models from a hub, here one that a thread of the test serves: pinned, and only files that cannot run code."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from calotype.errors import DependencyDown, JobFailed
from calotype.settings import Settings
from worker import hub

REVISION = "a" * 40
FILES = {
    "model_index.json": b"{}",
    "unet/weights.safetensors": b"w" * 100_000,
    "unet/weights.bin": b"a pickle",
    "pipeline.py": b"import os",
}


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as the client asks for."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/org/good/tree/{REVISION}":
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in FILES.items()
            ]
            self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})
        elif path.startswith(f"/org/good/resolve/{REVISION}/"):
            data = FILES[path.partition(f"{REVISION}/")[2]]
            self._send(200, data, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": REVISION})
        else:
            code = "GatedRepo" if "gated" in path else "RepoNotFound"
            self._send(403 if "gated" in path else 404, b"", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named so by the base class
        """Quiet."""


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@pytest.fixture
def settings() -> Iterator[Settings]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield Settings(hub_url=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


def quiet() -> None:
    """A pulse that nobody takes."""


def test_weights_and_configurations_are_fetched_and_pickles_and_code_are_not(
    settings: Settings, tmp_path: Path
) -> None:
    pulses: list[None] = []
    digests = hub.fetch(settings, "org/good", REVISION, tmp_path, lambda: pulses.append(None))
    wanted = ("model_index.json", "unet/weights.safetensors")
    assert digests == {name: hashlib.sha256(FILES[name]).hexdigest() for name in wanted}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(wanted)
    assert pulses


def test_a_download_can_be_interrupted(settings: Settings, tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        hub.fetch(settings, "org/good", REVISION, tmp_path, stop)


def test_an_unpinned_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="main"):
        hub.fetch(Settings(), "org/good", "main", tmp_path, quiet)


@pytest.mark.parametrize(("repo", "message"), [("org/none", "has no org/none"), ("org/gated", "accept its licence")])
def test_what_cannot_be_had_says_why(settings: Settings, tmp_path: Path, repo: str, message: str) -> None:
    with pytest.raises(JobFailed, match=message) as failed:
        hub.fetch(settings, repo, REVISION, tmp_path, quiet)
    assert failed.value.code == "model_unavailable"


def test_a_hub_that_cannot_be_reached_is_a_dependency_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import huggingface_hub

    def refuse(*args: object, **kwargs: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(DependencyDown):
        hub.fetch(Settings(), "org/good", REVISION, tmp_path, quiet)
