"""Overhead: images a second through the queue beside the bare loop at the same batch size."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks import processes, services
from benchmarks.calls import Calls
from benchmarks.figures import ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.services import Stack
from benchmarks.standin import Plan, work
from benchmarks.systems import own
from benchmarks.systems.own import Calotype
from benchmarks.waits import wait_for
from calotype import tables
from calotype.database import transaction
from calotype.jobs import TERMINAL, State
from calotype.local.stack import TENSOR_ENVIRONMENT

BATCH = 8
#: What the exact device takes for a batch, whatever its size.
DEVICE_SECONDS = 1.0
PROMPT = "blue bird logo"
WANTED = 0.97
#: Of the starter model, before another way has its turn.
BATCHES_A_ROUND = 3
#: For all jobs of one row of a table.
LONGEST_SECONDS = 600.0
QUEUE_NAME = "diffusion.generate"
#: The rows of the table of the real model.
BARE_1, BARE = "bare loop, batch 1", f"bare loop, batch {BATCH}"
QUEUE_1, QUEUE = "queue, batch 1", f"queue, batch {BATCH}"


@dataclass(frozen=True)
class Rate:
    """Images and the seconds in which they were made."""

    images: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.images / self.seconds


def main(scale: Scale = Scale.STANDARD) -> Report:
    batches, rounds = scale.pick((2, 1), (20, 4), (60, 12))
    with services.running() as stack:
        exact = _exact_device(stack, batches)
        real = _starter(stack, rounds)
    return Report(
        title="Overhead",
        method=f"A device that takes exactly {DEVICE_SECONDS:g} s a call: {batches} batches of {BATCH} images, once "
        f"as jobs of one image each that the queue batches, once as jobs of {BATCH}. All jobs wait before the "
        "worker takes the first; the time is from its claim to the end of the last, everything included "
        f"(claims, uploads, commits). Then the starter model on the CPU, {rounds} rounds of {BATCHES_A_ROUND} "
        "batches, in which all ways have their turn, jobs of one image; here API, database and store share the "
        "processor cores with the model, while the bare loop has them to itself.",
        tables=(_exact_table(exact), _real_table(real)),
        targets=_targets(exact),
    )


def _exact_device(stack: Stack, batches: int) -> dict[str, Rate]:
    plan = Plan(seconds=DEVICE_SECONDS)
    bare = sum(float(work(plan)["seconds"]) for _ in range(batches))
    rates = {"bare loop": Rate(batches * BATCH, bare)}
    shapes = {
        f"queue, jobs of 1 image in batches of {BATCH}": (batches * BATCH, 1),
        f"queue, jobs of {BATCH} images": (batches, BATCH),
    }
    for number, (name, (jobs, images)) in enumerate(shapes.items()):
        with ExitStack() as parts:
            calotype = Calotype(stack, parts, f"exact-{number}", max_batch=BATCH)
            ids = _submit(calotype, [own.request_body(plan, num_images=images)] * jobs)
            calotype.start_worker("worker")
            rates[name] = Rate(jobs * images, _span(calotype, ids))
    return rates


def _starter(stack: Stack, rounds: int) -> dict[str, Rate]:
    """All ways in turn, a few batches each, so that what disturbs the machine disturbs them alike."""
    with ExitStack() as parts:
        bare = parts.enter_context(_bare_loop(stack))
        single, batched = (_warm(stack, parts, batch) for batch in (1, BATCH))
        ways: dict[str, Callable[[], Rate]] = {
            BARE_1: lambda: bare(1, BATCHES_A_ROUND),
            QUEUE_1: lambda: _through_queue(single, BATCHES_A_ROUND),
            BARE: lambda: bare(BATCH, BATCHES_A_ROUND),
            QUEUE: lambda: _through_queue(batched, BATCHES_A_ROUND * BATCH),
        }
        made: dict[str, list[Rate]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                made[name].append(way())
    return {name: Rate(sum(rate.images for rate in of), sum(rate.seconds for rate in of)) for name, of in made.items()}


def _warm(stack: Stack, parts: ExitStack, batch: int) -> Calotype:
    """An installation whose worker has made an image, so that its model is loaded."""
    calotype = Calotype(stack, parts, f"starter-{batch}", max_batch=batch)
    calotype.start_starter_worker(f"starter-worker-{batch}")
    with calotype.calls() as calls:
        job = calls.post("/v1/jobs", own.starter_body("red fox logo")).expect(202)
    _span(calotype, [UUID(job["id"])])
    return calotype


def _through_queue(calotype: Calotype, images: int) -> Rate:
    """Jobs of one image each, which all wait before the worker takes the first."""
    _pause(calotype)
    ids = _submit(calotype, [own.starter_body(PROMPT)] * images)
    _resume(calotype)
    return Rate(images, _span(calotype, ids))


@contextmanager
def _bare_loop(stack: Stack) -> Iterator[Callable[[int, int], Rate]]:
    """The pipeline called in a loop by a process of its own; gives a function of batch size and calls."""
    command = processes.module(stack, "bare", "benchmarks.bare_loop", variables=TENSOR_ENVIRONMENT)
    with (
        command.log.open("wb") as log,
        subprocess.Popen(
            command.argv, env=dict(command.environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):

        def run(batch: int, calls: int) -> Rate:
            assert process.stdin is not None
            process.stdin.write(f"{batch} {calls}\n".encode())
            process.stdin.flush()
            return Rate(batch * calls, float(processes.read_line(process, LONGEST_SECONDS)))

        try:
            run(BATCH, 1)
            yield run
        finally:
            process.kill()


def _submit(calotype: Calotype, bodies: Sequence[Mapping[str, Any]]) -> list[UUID]:
    with calotype.calls() as calls:
        return [_accepted(calls, body) for body in bodies]


def _accepted(calls: Calls, body: Mapping[str, Any]) -> UUID:
    return UUID(calls.post("/v1/jobs", body, {"Idempotency-Key": secrets.token_hex(16)}).expect(202)["id"])


def _pause(calotype: Calotype) -> None:
    with transaction(calotype.engine) as conn:
        conn.execute(tables.queue_pauses.insert().values(queue=QUEUE_NAME))


def _resume(calotype: Calotype) -> None:
    """The worker notices by its own clock; the time counts from its first claim."""
    with transaction(calotype.engine) as conn:
        conn.execute(tables.queue_pauses.delete())


def _span(calotype: Calotype, ids: Sequence[UUID]) -> float:
    """Seconds from the first claim to the last end of these jobs, which all must succeed."""
    jobs = tables.jobs
    ours = jobs.c.id.in_(ids)
    left = sa.select(sa.func.count()).where(ours, jobs.c.state.notin_([str(state) for state in TERMINAL]))
    wait_for(lambda: _scalar(calotype, left) == 0, LONGEST_SECONDS, f"{len(ids)} jobs to end", pause=0.2)
    failed = sa.select(sa.func.count()).where(ours, jobs.c.state != State.SUCCEEDED)
    if _scalar(calotype, failed):
        raise AssertionError("a job did not succeed")
    span = sa.select(sa.func.max(jobs.c.finished_at) - sa.func.min(jobs.c.started_at)).where(ours)
    return float(_scalar(calotype, span).total_seconds())


def _scalar(calotype: Calotype, statement: sa.Select[Any]) -> Any:
    with transaction(calotype.engine) as conn:
        return conn.execute(statement).scalar_one()


def _exact_table(rates: Mapping[str, Rate]) -> Table:
    reference = rates["bare loop"].per_second
    return Table(
        title=f"A device that takes exactly {DEVICE_SECONDS:g} s for a batch of {BATCH}",
        columns=("way", "images", "images a second", "ratio to the bare loop"),
        rows=tuple(
            (name, str(rate.images), f"{rate.per_second:.2f}", f"{rate.per_second / reference:.3f}")
            for name, rate in rates.items()
        ),
    )


def _real_table(rates: Mapping[str, Rate]) -> Table:
    single = {BARE_1: BARE_1, BARE: BARE_1, QUEUE_1: QUEUE_1, QUEUE: QUEUE_1}
    bare = {BARE_1: BARE_1, BARE: BARE, QUEUE_1: BARE_1, QUEUE: BARE}
    return Table(
        title="The starter model on the CPU",
        columns=("way", "images a second", "ratio to the bare loop", "gain over batch 1"),
        rows=tuple(
            (
                name,
                f"{rate.per_second:.2f}",
                f"{rate.per_second / rates[bare[name]].per_second:.3f}",
                ratio(rate.per_second / rates[single[name]].per_second),
            )
            for name, rate in rates.items()
        ),
    )


def _targets(exact: Mapping[str, Rate]) -> tuple[Target, ...]:
    reference = exact["bare loop"].per_second
    shares = {name: rate.per_second / reference for name, rate in exact.items() if name != "bare loop"}
    return tuple(
        Target(
            what=f"images a second, {name}, against the bare loop",
            wanted=f"ratio ≥ {WANTED}",
            measured=f"{share:.3f}",
            met=share >= WANTED,
        )
        for name, share in shares.items()
    )
