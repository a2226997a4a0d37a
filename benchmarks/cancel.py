"""Cancel: how long after the call the worker is free for the next job."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from benchmarks import services
from benchmarks.calls import Calls
from benchmarks.figures import percentile, ratio, seconds
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.standin import Plan
from benchmarks.systems.own import Calotype
from benchmarks.waits import wait_for

STEP_SECONDS = 0.1
LONG = Plan(seconds=3600.0, steps=round(3600.0 / STEP_SECONDS))
#: The targets allow this much and one step.
ALLOWED_SECONDS = 2.0


def main(scale: Scale = Scale.STANDARD) -> Report:
    rounds = scale.pick(2, 40, 200)
    with services.running() as stack, ExitStack() as parts:
        calotype = Calotype(stack, parts)
        calls = parts.enter_context(calotype.calls())
        calotype.start_worker("worker")
        samples = [_round(calotype, calls) for _ in range(rounds)]
    p95, limit = percentile(samples, 0.95), ALLOWED_SECONDS + STEP_SECONDS
    return Report(
        title="Cancel",
        method=f"{rounds} times: a job of {STEP_SECONDS:g} s a step runs, a second one waits behind it on the only "
        "worker, and the first is canceled over HTTP at a random moment. The time is from the start of that "
        "call to the moment from which the second job's row says `running`.",
        tables=(
            Table(
                title="From cancel to the next job running",
                columns=("p50", "p95", "longest", "p95 ratio to the limit"),
                rows=((seconds(percentile(samples, 0.5)), seconds(p95), seconds(max(samples)), ratio(p95 / limit)),),
            ),
        ),
        targets=(
            Target(
                what="cancel to free worker, p95",
                wanted=f"≤ {ALLOWED_SECONDS:g} s + one step of {STEP_SECONDS:g} s",
                measured=seconds(p95),
                met=p95 <= limit,
            ),
        ),
    )


def _round(calotype: Calotype, calls: Calls) -> float:
    submit = calotype.submitter()
    first = submit(LONG)
    wait_for(lambda: calotype.look(first.id).running, 30.0, "the first job to run")
    second = submit(Plan())
    time.sleep(random.uniform(0.5, 2.0))
    canceled = time.time()
    calls.post(f"/v1/jobs/{first.id}/cancel").expect(200)
    wait_for(lambda: calotype.look(second.id).ended, 60.0, "the second job to end")
    started = calotype.look(second.id).running
    if started is None:
        raise AssertionError("a job ended that never ran")
    return started - canceled
