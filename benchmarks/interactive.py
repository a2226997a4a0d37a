"""A warm interactive job: how much longer the client waits for its image than the model takes to make it."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks import services
from benchmarks.calls import Calls
from benchmarks.figures import ms, percentile, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.standin import Plan
from benchmarks.systems import own
from benchmarks.systems.own import Calotype
from benchmarks.systems.plain import Baseline

WARM_UP = 3
#: How long the stand-in takes; random, to meet every phase of whatever looks at intervals.
MODEL_SECONDS = (0.05, 0.60)
#: How often the baseline's client asks: it has nothing to wait on.
POLL_SECONDS = 0.05
P50_SECONDS = 0.050
P99_SECONDS = 0.120
STAND_IN = "Calotype, stand-in model"
STARTER = "Calotype, starter model"

#: Sends one job and returns the model's own seconds when the result is there.
Ask = Callable[[], float]


def main(scale: Scale = Scale.STANDARD) -> Report:
    jobs, real_jobs = scale.pick((5, 1), (200, 40), (1000, 200))
    with services.running() as stack, ExitStack() as parts:
        calotype, baseline = Calotype(stack, parts), Baseline(stack, parts)
        calls = parts.enter_context(calotype.calls())
        plain = parts.enter_context(baseline.calls())
        worker = calotype.start_worker("stand-in")
        baseline.start_worker("baseline-worker")
        asks = {STAND_IN: lambda: _ask_standin(calls), Baseline.name: lambda: _ask_baseline(plain)}
        samples = _in_turn(asks, jobs)
        worker.stop()
        calotype.start_starter_worker("starter")
        samples |= _in_turn({STARTER: lambda: _ask_starter(calls)}, real_jobs)
    return Report(
        title="A warm interactive job",
        method=f"One client, one warm worker, one image a job: {jobs} jobs of the stand-in, which takes "
        f"{MODEL_SECONDS[0]:g} to {MODEL_SECONDS[1]:g} s, and {real_jobs} of the starter model. The client sends the "
        "job with `Prefer: wait` and gets the finished job as the answer; the time is that of the whole call less the "
        f"model's own. The baseline's client asks every {POLL_SECONDS * 1e3:.0f} ms; it stores no image.",
        tables=(_table(samples),),
        targets=(*_targets(STAND_IN, samples), *_targets(STARTER, samples)),
    )


def _in_turn(asks: Mapping[str, Ask], jobs: int) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in asks}
    for number in range(WARM_UP + jobs):
        for name, ask in asks.items():
            # The client thinks; the worker goes idle.
            time.sleep(random.uniform(0.05, 0.15))
            began = time.monotonic()
            model_seconds = ask()
            overhead = time.monotonic() - began - model_seconds
            if number >= WARM_UP:
                samples[name].append(overhead)
    return samples


def _plan() -> Plan:
    return Plan(seconds=random.uniform(*MODEL_SECONDS))


def _ask_standin(calls: Calls) -> float:
    return float(_ask(calls, own.request_body(_plan()))["seconds"])


def _ask_starter(calls: Calls) -> float:
    return float(_ask(calls, own.starter_body("blue bird logo"))["seconds"])


def _ask(calls: Calls, body: Mapping[str, Any]) -> Mapping[str, Any]:
    headers = {"Prefer": "wait=60", "Idempotency-Key": secrets.token_hex(16)}
    job = calls.post("/v1/jobs", body, headers).expect(200)
    if job["state"] != "succeeded" or len(job["artifacts"]) != 1:
        raise AssertionError(f"the job ended {job['state']}: {job['error']}")
    result: Mapping[str, Any] = job["result"]
    return result


def _ask_baseline(calls: Calls) -> float:
    job = calls.post("/jobs", own.request_body(_plan())).expect(202)
    while job["finished_at"] is None:
        time.sleep(POLL_SECONDS)
        job = calls.get(f"/jobs/{job['id']}").expect(200)
    return float(job["result"]["seconds"])


def _table(samples: Mapping[str, Sequence[float]]) -> Table:
    medians = {name: percentile(values, 0.5) for name, values in samples.items()}
    return Table(
        title="Result time minus model time",
        columns=("system", "jobs", "p50", "p99", "p50 ratio"),
        rows=tuple(
            (
                name,
                str(len(values)),
                ms(medians[name]),
                ms(percentile(values, 0.99)),
                ratio(medians[name] / medians[Baseline.name]),
            )
            for name, values in samples.items()
        ),
    )


def _targets(name: str, samples: Mapping[str, Sequence[float]]) -> tuple[Target, Target]:
    p50, p99 = percentile(samples[name], 0.5), percentile(samples[name], 0.99)
    return (
        Target(what=f"{name}, p50", wanted="≤ 50 ms", measured=ms(p50), met=p50 <= P50_SECONDS),
        Target(what=f"{name}, p99", wanted="≤ 120 ms", measured=ms(p99), met=p99 <= P99_SECONDS),
    )
