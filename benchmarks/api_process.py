"""What an API process weighs: resident memory after traffic, against the limit of 150 MB and against a bare Flask."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import psutil

from benchmarks import processes, services
from benchmarks.calls import Calls
from benchmarks.figures import megabytes, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.systems.own import Calotype

LIMIT = 150e6
BARE = "import flask, gunicorn.app.base, sys; print('ready', flush=True); sys.stdin.read()"


def main(scale: Scale = Scale.STANDARD) -> Report:
    requests = scale.pick(25, 300, 1000)
    with services.running() as stack, ExitStack() as parts:
        calotype = Calotype(stack, parts)
        with calotype.calls() as calls:
            _send(calls, requests)
        serving = processes.largest_rss(calotype.api)
    bare = _bare_flask()
    return Report(
        title="Memory of an API process",
        method=f"Resident memory of the serving process after {requests} requests over all kinds of answers, beside "
        "that of a process which has imported Flask and gunicorn and nothing else.",
        tables=(
            Table(
                title="Resident memory",
                columns=("process", "memory", "ratio to bare Flask"),
                rows=(
                    ("Calotype's API", megabytes(serving), ratio(serving / bare)),
                    ("bare Flask and gunicorn", megabytes(bare), ratio(1.0)),
                ),
            ),
        ),
        targets=(
            Target(
                what="resident memory of an API process",
                wanted=f"≤ {megabytes(LIMIT)}",
                measured=megabytes(serving),
                met=serving <= LIMIT,
            ),
        ),
    )


def _send(calls: Calls, requests: int) -> None:
    for _ in range(requests // 5):
        for path in ("/readyz", "/v1/queues", "/v1/workers", "/v1/jobs", "/v1/models"):
            calls.get(path).expect(200)


def _bare_flask() -> int:
    with subprocess.Popen([sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise AssertionError("the bare process did not start")
        return int(psutil.Process(process.pid).memory_info().rss)
