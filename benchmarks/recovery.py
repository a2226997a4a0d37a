"""Recovery: how long after a worker is killed its job runs again."""

from __future__ import annotations

import random
import signal
import time
from contextlib import ExitStack
from uuid import UUID

import sqlalchemy as sa

from benchmarks import services
from benchmarks.figures import percentile, ratio, seconds
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.standin import Plan
from benchmarks.systems import own
from benchmarks.systems.own import Calotype
from benchmarks.waits import wait_for
from calotype import tables
from calotype.database import transaction
from calotype.local.process import Process

LEASE_SECONDS = 10.0
HEARTBEAT_SECONDS = 2.0
#: Beyond the lease.
ALLOWED_SECONDS = 5.0
#: Workers that are killed in one round, each at a moment of its own.
VICTIMS = 3
LONG = Plan(seconds=3600.0, steps=36_000)
#: Every kill costs an attempt; this many are allowed at most.
MOST_ATTEMPTS = 20


def main(scale: Scale = Scale.STANDARD) -> Report:
    rounds = scale.pick(1, 4, 12)
    lease, heartbeat = scale.pick((2.0, 0.5), (LEASE_SECONDS, HEARTBEAT_SECONDS), (LEASE_SECONDS, HEARTBEAT_SECONDS))
    with services.running() as stack, ExitStack() as parts:
        calotype = Calotype(stack, parts, lease_seconds=lease, heartbeat_seconds=heartbeat, max_batch=1)
        calotype.start_reconciler()
        samples = Killing(calotype).rounds(rounds)
    longest, limit = max(samples), lease + ALLOWED_SECONDS
    return Report(
        title="Recovery after SIGKILL",
        method=f"{len(samples)} kills of a worker in the middle of a job, each at a random moment between two "
        f"heartbeats, with {VICTIMS} idle workers beside. Leases of {lease:g} s, heartbeats every "
        f"{heartbeat:g} s, everything else as it comes. The time is from the kill to the moment from which the "
        "job's row says `running` again.",
        tables=(
            Table(
                title="From the kill to running again",
                columns=("kills", "p50", "longest", "longest, ratio to the limit"),
                rows=(
                    (
                        str(len(samples)),
                        seconds(percentile(samples, 0.5)),
                        seconds(longest),
                        ratio(longest / limit),
                    ),
                ),
            ),
        ),
        targets=(
            Target(
                what="recovery after SIGKILL, longest",
                wanted=f"≤ the lease of {lease:g} s + {ALLOWED_SECONDS:g} s",
                measured=seconds(longest),
                met=longest <= limit,
            ),
        ),
    )


class Killing:
    """Jobs that run on and on, while the workers below them are killed and replaced."""

    def __init__(self, calotype: Calotype) -> None:
        self._calotype = calotype
        self._workers: dict[int, Process] = {}
        self._number = 0

    def rounds(self, count: int) -> list[float]:
        """Seconds from each kill until its job ran again."""
        self._add_workers()
        with self._calotype.calls() as calls:
            body = own.request_body(LONG, max_attempts=MOST_ATTEMPTS)
            jobs = [calls.post("/v1/jobs", body).expect(202)["id"] for _ in range(VICTIMS)]
        for job in jobs:
            wait_for(lambda job=job: self._calotype.look(job).running, 60.0, "a job to run")  # type: ignore[misc]
        samples = []
        for _ in range(count):
            self._add_workers()
            kills = {job: self._kill_worker_of(job) for job in jobs}
            samples += [self._wait_until_again(job, epoch) - killed for job, (killed, epoch) in kills.items()]
        return samples

    def _add_workers(self) -> None:
        for _ in range(VICTIMS):
            self._number += 1
            process = self._calotype.start_worker(f"worker-{self._number}")
            self._workers[process.pid] = process

    def _kill_worker_of(self, job: str) -> tuple[float, int]:
        """When it was killed, and the epoch of the job that it had."""
        time.sleep(random.uniform(0.0, HEARTBEAT_SECONDS))
        row = self._calotype.row(job)
        victim = self._workers.pop(self._pid(row["worker_id"]))
        killed = time.time()
        victim.signal(signal.SIGKILL)
        return killed, row["epoch"]

    def _pid(self, worker_id: UUID) -> int:
        workers = tables.workers
        with transaction(self._calotype.engine) as conn:
            return int(conn.execute(sa.select(workers.c.pid).where(workers.c.id == worker_id)).scalar_one())

    def _wait_until_again(self, job: str, epoch: int) -> float:
        """When the job ran again, by its row."""

        def again() -> float | None:
            row = self._calotype.row(job)
            running = row["epoch"] > epoch and row["state"] == "running"
            return float(row["started_at"].timestamp()) if running else None

        return wait_for(again, 120.0, "a job whose worker was killed to run again", pause=0.1)
