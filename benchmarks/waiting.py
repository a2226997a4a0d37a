"""A thousand clients that wait, on one API process: what they weigh, and what they cost those who submit."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from benchmarks import processes, services, waiters
from benchmarks.figures import megabytes, ms, percentile, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.standin import Plan
from benchmarks.systems import Submit
from benchmarks.systems.own import Calotype
from benchmarks.waiters import Summary

JOBS = 100
LIMIT = 300e6
MOST_RATIO = 2.0
#: Between two submissions: the server is busy, not flooded.
PAUSE_SECONDS = (0.0, 0.04)
WARM_UP = 20
READY_SECONDS = 120.0
#: The server's own count.
GAUGE = "calotype_http_waiting_clients"


def main(scale: Scale = Scale.STANDARD) -> Report:
    clients = scale.pick(40, 1_000, 1_000)
    submits = scale.pick(10, 600, 2_000)
    raise_file_limit()
    with services.running() as stack, ExitStack() as parts:
        calotype = Calotype(stack, parts)
        submit, seen = calotype.submitter(), list[Summary]()
        jobs = [submit(Plan()).id for _ in range(JOBS)]
        alone = _submit(submit, submits)
        empty = processes.largest_rss(calotype.api)
        with _waiting(calotype, clients, jobs, seen):
            coming = _submit_until(submit, lambda: _clients_held(calotype) == clients)
            beside = _submit(submit, submits)
            full = processes.largest_rss(calotype.api)
        # Once more without them: whatever else slowed the machine down meanwhile counts for both sides.
        alone += _submit(submit, submits)
    [summary] = seen
    usual = percentile(alone, 0.99)
    growth = percentile(beside, 0.99) / usual
    return Report(
        title="Waiting clients",
        method=f"{clients:,} clients of another process wait for {JOBS} queued jobs at one API process, half of them "
        f"on the event stream, half on long polls of {waiters.POLL_SECONDS} s; one that is answered or turned away "
        "comes back a second later. They all come at once; what submissions take until the last of them is held is "
        f"told apart. Beside them one client submits {submits} jobs with random pauses; without them it does so before "
        "and after.",
        tables=(
            Table(
                title="One API process",
                columns=("clients that wait", "memory", "submit p50", "submit p99", "p99 ratio"),
                rows=(
                    _row("none", alone, usual, megabytes(empty)),
                    _row(f"{clients:,} that come at once", coming, usual, ""),
                    _row(f"{clients:,}", beside, usual, megabytes(full)),
                ),
            ),
        ),
        notes=(
            f"The clients saw {summary.held:,} requests held, {summary.early:,} answered within "
            f"{waiters.EARLY_SECONDS:g} s, {summary.refused:,} refused and {summary.broken:,} broken connections.",
        ),
        targets=(
            Target(
                what=f"clients of {clients:,} that are refused or turned away",
                wanted="none",
                measured=f"{summary.early + summary.refused + summary.broken:,}",
                met=summary.early + summary.refused + summary.broken == 0,
            ),
            Target(
                what=f"memory of an API process with {clients:,} clients waiting",
                wanted=f"≤ {megabytes(LIMIT)}",
                measured=megabytes(full),
                met=full <= LIMIT,
            ),
            Target(
                what=f"submit p99 with {clients:,} clients waiting",
                wanted="at most doubled",
                measured=f"ratio {ratio(growth)}",
                met=growth <= MOST_RATIO,
            ),
        ),
    )


def _row(who: str, latencies: Sequence[float], usual: float, memory: str) -> tuple[str, ...]:
    slowest = percentile(latencies, 0.99)
    return (who, memory, ms(percentile(latencies, 0.5)), ms(slowest), ratio(slowest / usual))


def raise_file_limit() -> None:
    """A connection is an open file; shells usually allow 1,024, containers far more. Processes started here inherit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _submit(submit: Submit, count: int) -> list[float]:
    """Seconds of each submission."""
    return [_submit_one(submit) for _ in range(WARM_UP + count)][WARM_UP:]


def _submit_until(submit: Submit, done: Callable[[], bool]) -> list[float]:
    """Seconds of each submission until ``done``, which is asked after every tenth."""
    latencies, until = list[float](), time.monotonic() + READY_SECONDS
    while not latencies or not done():
        if time.monotonic() > until:
            raise AssertionError(f"after {READY_SECONDS:g} s the server does not hold all the clients")
        latencies += [_submit_one(submit) for _ in range(10)]
    return latencies


def _submit_one(submit: Submit) -> float:
    time.sleep(random.uniform(*PAUSE_SECONDS))
    job = submit(Plan())
    return job.accepted - job.sent


def _clients_held(calotype: Calotype) -> int:
    """How many clients wait, as the server counts them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{calotype.settings.port}/metrics", timeout=READY_SECONDS) as answer:
        [line] = [line for line in answer.read().decode().splitlines() if line.startswith(f"{GAUGE} ")]
    return round(float(line.split()[1]))


@contextmanager
def _waiting(calotype: Calotype, clients: int, jobs: Sequence[str], summary: list[Summary]) -> Iterator[None]:
    """Clients that wait, until the end of the block; then adds what they saw to ``summary``."""
    half = clients // 2
    command = processes.module(
        calotype.stack,
        "waiters",
        "benchmarks.waiters",
        *(str(number) for number in (calotype.settings.port, half, clients - half)),
        variables={waiters.KEY: calotype.key},
    )
    with (
        command.log.open("wb") as log,
        subprocess.Popen(
            command.argv, env=dict(command.environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        try:
            assert process.stdin is not None
            process.stdin.write("\n".join(jobs).encode())
            process.stdin.close()
            if processes.read_line(process, READY_SECONDS) != waiters.READY:
                raise AssertionError("the waiting clients did not come up")
            yield
            process.terminate()
            summary.append(Summary(**json.loads(processes.read_line(process, READY_SECONDS))))
        finally:
            process.kill()
