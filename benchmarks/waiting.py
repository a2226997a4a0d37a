"""A thousand clients that wait, on one API process: what they weigh, and what they cost those who submit."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import time
from collections.abc import Iterator, Sequence
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


def main(scale: Scale = Scale.STANDARD) -> Report:
    clients = scale.pick(40, 1_000, 1_000)
    submits = scale.pick(10, 300, 1_000)
    raise_file_limit()
    with services.running() as stack, ExitStack() as parts:
        calotype = Calotype(stack, parts)
        submit, seen = calotype.submitter(), list[Summary]()
        jobs = [submit(Plan()).id for _ in range(JOBS)]
        alone = _submit(submit, submits)
        empty = processes.largest_rss(calotype.api)
        with _waiting(calotype, clients, jobs, seen):
            beside = _submit(submit, submits)
            full = processes.largest_rss(calotype.api)
        # Once more without them: whatever else slowed the machine down meanwhile counts for both sides.
        alone += _submit(submit, submits)
    [summary] = seen
    growth = percentile(beside, 0.99) / percentile(alone, 0.99)
    return Report(
        title="Waiting clients",
        method=f"{clients:,} clients of another process wait for {JOBS} queued jobs at one API process, half of them "
        "on the event stream, half on long polls; one that is turned away comes back a second later. Beside them one "
        f"client submits {submits} jobs with random pauses; without them it does so before and after.",
        tables=(
            Table(
                title="One API process",
                columns=("clients that wait", "memory", "submit p50", "submit p99", "p99 ratio"),
                rows=(
                    ("none", megabytes(empty), ms(percentile(alone, 0.5)), ms(percentile(alone, 0.99)), ratio(1.0)),
                    (
                        f"{clients:,}",
                        megabytes(full),
                        ms(percentile(beside, 0.5)),
                        ms(percentile(beside, 0.99)),
                        ratio(growth),
                    ),
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


def raise_file_limit() -> None:
    """A connection is an open file; shells usually allow 1,024, containers far more. Processes started here inherit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _submit(submit: Submit, count: int) -> list[float]:
    """Seconds of each submission."""
    latencies = []
    for _ in range(WARM_UP + count):
        time.sleep(random.uniform(*PAUSE_SECONDS))
        job = submit(Plan())
        latencies.append(job.accepted - job.sent)
    return latencies[WARM_UP:]


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
