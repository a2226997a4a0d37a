"""What an API process weighs: resident memory after traffic, against the limit of 150 MB and against a bare Flask."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import httpx
import psutil

from benchmarks.services import running
from calotype.local.modules import module_argv, module_environment
from calotype.local.process import free_port
from calotype.settings import environment

LIMIT = 150e6
REQUESTS = 300
BARE = "import flask, gunicorn.app.base, sys; print('ready', flush=True); sys.stdin.read()"


def main() -> None:
    with running() as settings:
        settings = dataclasses.replace(settings, port=free_port())
        process = subprocess.Popen(
            module_argv("api"),
            env={**module_environment(os.environ), **environment(settings)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _send_requests(f"http://127.0.0.1:{settings.port}")
            parent = psutil.Process(process.pid)
            largest = max(one.memory_info().rss for one in [parent, *parent.children(recursive=True)])
        finally:
            process.terminate()
            process.wait(30)
    bare = _bare_flask()
    print(f"serving process {largest / 1e6:.0f} MB, bare Flask and gunicorn {bare / 1e6:.0f} MB")
    print(f"ratio to the limit of {LIMIT / 1e6:.0f} MB: {largest / LIMIT:.2f}; to bare Flask: {largest / bare:.2f}")


def _send_requests(url: str) -> None:
    deadline = time.monotonic() + 60
    with httpx.Client(base_url=url, timeout=10) as client:
        while True:
            try:
                client.get("/healthz")
                break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        for path in ("/readyz", "/openapi.json", "/docs", "/v1/jobs", "/metrics") * (REQUESTS // 5):
            client.get(path)


def _bare_flask() -> int:
    with subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise AssertionError("the bare process did not start")
        return int(psutil.Process(process.pid).memory_info().rss)
