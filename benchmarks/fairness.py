"""Fairness: shares by weight, running limits under many claimers, and a lone job beside a crowd."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

import sqlalchemy as sa

from benchmarks import services
from benchmarks.backlog import Backlog, claimant
from benchmarks.figures import ratio, seconds
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.services import Stack
from benchmarks.standin import Plan
from benchmarks.systems import Submit
from benchmarks.systems.own import Calotype
from benchmarks.threads import run_all
from benchmarks.waits import wait_for
from calotype import queue, tables
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.jobs import HELD, Job, State
from calotype.queue import Outcome

WEIGHTS = (3.0, 1.0)
TOLERANCE = 0.05
#: Of the jobs of both weights: not all alike, so that counting jobs would not do.
JOB_SECONDS = (0.05, 0.15)
CLAIMERS = 16
LIMITED_TENANTS = 4
#: All limits together are below the number of claimers, so that they always bind.
MAX_RUNNING = 3
#: Images of one call while limits are measured: batches must keep them too.
MOST_UNITS = 2
#: How long a claimer keeps what it has.
HOLD_SECONDS = (0.0, 0.02)
CROWD_JOB = Plan(seconds=0.5)


def main(scale: Scale = Scale.STANDARD) -> Report:
    counted = scale.pick(12, 200, 200)
    claims = scale.pick(100, 2_000, 10_000)
    crowd, lone_jobs = scale.pick((40, 2), (1_000, 10), (1_000, 40))
    with services.running() as stack:
        shares = _weights(stack, counted)
        limits = _limits(stack, claims)
        lone = _lone_jobs(stack, crowd, lone_jobs)
    return Report(
        title="Fairness",
        method=f"Weights: two tenants of weights 3 and 1, each with enough queued stand-in jobs of {JOB_SECONDS[0]:g} "
        f"to {JOB_SECONDS[1]:g} s; of the first {counted} jobs that one worker ended, the device-seconds of "
        f"each tenant. Limits: {CLAIMERS} threads make {claims:,} claims of up to {MOST_UNITS} jobs of "
        f"{LIMITED_TENANTS} tenants that may each run {MAX_RUNNING}; after each claim one query counts what "
        f"runs. Lone job: one worker, {crowd:,} jobs of {CROWD_JOB.seconds:g} s of one tenant, and {lone_jobs} "
        "times a job of another; the time from its 202 to `running`, beside the longest job of the crowd from "
        "claim to end.",
        tables=(shares.table(), limits.table(), lone.table()),
        targets=(shares.target(counted), limits.target(claims), lone.target(crowd)),
    )


@dataclass(frozen=True)
class Shares:
    """Device-seconds and jobs of both tenants."""

    seconds: tuple[float, float]
    jobs: tuple[int, int]

    @property
    def got(self) -> float:
        return self.seconds[0] / self.seconds[1]

    def table(self) -> Table:
        total = sum(self.seconds)
        return Table(
            title="Device time by weight",
            columns=("weight", "jobs", "device-seconds", "share", "share wanted"),
            rows=tuple(
                (f"{weight:g}", str(jobs), seconds(had), f"{had / total:.1%}", f"{weight / sum(WEIGHTS):.1%}")
                for weight, jobs, had in zip(WEIGHTS, self.jobs, self.seconds, strict=True)
            ),
        )

    def target(self, counted: int) -> Target:
        wanted = WEIGHTS[0] / WEIGHTS[1]
        return Target(
            what=f"device-seconds of weights 3 : 1 over {counted} jobs",
            wanted="3 within 5 %",
            measured=f"{self.got:.2f}",
            met=abs(self.got / wanted - 1) <= TOLERANCE,
        )


def _weights(stack: Stack, counted: int) -> Shares:
    with ExitStack() as parts:
        calotype = Calotype(stack, parts, "weights", max_batch=1)
        ids = []
        for weight in WEIGHTS:
            tenant, key = calotype.add_tenant(f"weight-{weight:g}", weight=weight)
            submit = calotype.submitter(key)
            for _ in range(counted):
                submit(Plan(seconds=random.uniform(*JOB_SECONDS)))
            ids.append(tenant.id)
        calotype.start_worker("worker")
        ended = wait_for(lambda: _first_ended(calotype, counted), 60.0 + counted, f"{counted} jobs to end", pause=0.5)
    of = [[job for job in ended if job.tenant_id == tenant] for tenant in ids]
    first, second = (sum(job.gpu_seconds for job in jobs) for jobs in of)
    return Shares((first, second), (len(of[0]), len(of[1])))


def _first_ended(calotype: Calotype, count: int) -> list[Job] | None:
    jobs = tables.jobs
    statement = sa.select(jobs).where(jobs.c.state == State.SUCCEEDED).order_by(jobs.c.finished_at).limit(count)
    with transaction(calotype.engine) as conn:
        found = [Job.from_row(row) for row in conn.execute(statement).mappings()]
    return found if len(found) == count else None


@dataclass
class Limits:
    """What was seen to run, by all claimers."""

    most: int = 0
    exceeded: int = 0
    claims: int = 0
    #: Transactions that Postgres ended, such as one of two that wait for each other.
    repeated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, running: Sequence[int]) -> None:
        with self.lock:
            self.claims += 1
            self.most = max(self.most, *running)
            self.exceeded += any(count > MAX_RUNNING for count in running)

    def note_repeated(self) -> None:
        with self.lock:
            self.repeated += 1

    def table(self) -> Table:
        return Table(
            title=f"Running limits under {CLAIMERS} claimers",
            columns=("claims", "limit", "most that ran at once", "limit exceeded", "finishes repeated"),
            rows=(
                (f"{self.claims:,}", str(MAX_RUNNING), str(self.most), f"{self.exceeded} times", str(self.repeated)),
            ),
        )

    def target(self, claims: int) -> Target:
        return Target(
            what=f"a running limit in {claims:,} claims by {CLAIMERS} claimers",
            wanted="never exceeded, and reached",
            measured=f"exceeded {self.exceeded} times, most {self.most} of {MAX_RUNNING}",
            met=self.exceeded == 0 and self.most == MAX_RUNNING,
        )


def _limits(stack: Stack, claims: int) -> Limits:
    seen = Limits()
    with ExitStack() as parts:
        backlog = Backlog(
            stack,
            parts,
            "limits",
            claims * MOST_UNITS + CLAIMERS * MOST_UNITS,
            owners=LIMITED_TENANTS,
            workers=CLAIMERS,
            max_running=MAX_RUNNING,
        )
        run_all([partial(_claim_until, backlog, worker, claims, seen) for worker in backlog.workers])
    return seen


def _claim_until(backlog: Backlog, worker: UUID, claims: int, seen: Limits) -> None:
    while seen.claims < claims:
        with transaction(backlog.engine) as conn:
            claimed = queue.claim_batch(conn, claimant(worker, MOST_UNITS)).jobs
        if not claimed:
            # Every tenant is at its limit.
            time.sleep(0.002)
            continue
        with transaction(backlog.engine) as conn:
            seen.note(_running(conn))
        time.sleep(random.uniform(*HOLD_SECONDS))
        for job in claimed:
            _finish(backlog.engine, job, seen)


def _finish(engine: sa.Engine, job: Job, seen: Limits) -> None:
    """As workers do: again when Postgres would not have it; how often is part of the result."""
    while True:
        try:
            with transaction(engine) as conn:
                queue.finish(conn, job.id, job.epoch, Outcome(result={}))
            return
        except DependencyDown:
            seen.note_repeated()


def _running(conn: sa.Connection) -> list[int]:
    """How many jobs of each tenant run at this moment: one statement, so one moment."""
    jobs = tables.jobs
    statement = (
        sa.select(sa.func.count()).where(jobs.c.state.in_([str(state) for state in HELD])).group_by(jobs.c.tenant_id)
    )
    return list(conn.execute(statement).scalars()) or [0]


@dataclass(frozen=True)
class Lone:
    """How long lone jobs waited, and the longest job of the crowd."""

    waits: list[float]
    job_seconds: float

    def table(self) -> Table:
        longest, allowed = max(self.waits), self.job_seconds
        return Table(
            title="A lone job beside a crowd",
            columns=("jobs", "longest wait", "longest job of the crowd", "ratio"),
            rows=((str(len(self.waits)), seconds(longest), seconds(allowed), ratio(longest / allowed)),),
        )

    def target(self, crowd: int) -> Target:
        return Target(
            what=f"a lone job beside {crowd:,} of another tenant starts",
            wanted=f"within one job's time, {seconds(self.job_seconds)}",
            measured=seconds(max(self.waits)),
            met=max(self.waits) <= self.job_seconds,
        )


def _lone_jobs(stack: Stack, crowd: int, lone_jobs: int) -> Lone:
    with ExitStack() as parts:
        calotype = Calotype(stack, parts, "lone", max_batch=1)
        many = calotype.submitter()
        _, key = calotype.add_tenant("lone")
        alone = calotype.submitter(key)
        for _ in range(crowd):
            many(CROWD_JOB)
        calotype.start_worker("worker")
        waits = [_lone_wait(calotype, alone) for _ in range(lone_jobs)]
        jobs = tables.jobs
        took = jobs.c.finished_at - jobs.c.started_at
        longest = sa.select(sa.func.max(took)).where(jobs.c.tenant_id == calotype.tenant.id)
        with transaction(calotype.engine) as conn:
            return Lone(waits, conn.execute(longest).scalar_one().total_seconds())


def _lone_wait(calotype: Calotype, submit: Submit) -> float:
    time.sleep(random.uniform(0.5, 1.5))
    job = submit(Plan())
    running = wait_for(lambda: calotype.look(job.id).running, 120.0, "a lone job to run", pause=0.05)
    return max(0.0, running - job.accepted)
