"""Pickup: how long after the 202 a job runs, with an idle worker, and with one that is busy beside one that is idle."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks import services
from benchmarks.figures import ms, percentile, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.services import Stack
from benchmarks.standin import Plan
from benchmarks.systems import Observed, Submit, Submitted, System, peer
from benchmarks.systems.own import Calotype
from benchmarks.systems.plain import Baseline
from benchmarks.waits import wait_for

#: Long enough for a worker to be idle again when the next job comes. Random, to meet every phase of its clocks.
PAUSE_SECONDS = (0.05, 0.20)
#: How long a job is left alone before it is looked at: looking costs CPU that the measured processes share.
QUIET_SECONDS = 0.05
WARM_UP = 5
#: The job that keeps a worker busy; it can be stopped at every step.
OCCUPATION = Plan(seconds=3600.0, steps=36_000)
P50_SECONDS = 0.015
P99_SECONDS = 0.100

#: Of one job: from the 202 to `running`, from the 202 to its work, and from the start of the request to `running`.
Sample = tuple[float, float | None, float]


def main(scale: Scale = Scale.STANDARD) -> Report:
    jobs = scale.pick(5, 200, 1000)
    with services.running() as stack, ExitStack() as parts:
        systems = _systems(stack, parts)
        for system in systems:
            system.start_worker(f"first-{system.name.split()[0]}")
        idle = _measure(systems, jobs)
        for system in systems:
            # The newcomer, idle while it starts, or the first: whichever takes the long job, the other stays idle.
            system.start_worker(f"second-{system.name.split()[0]}")
            _occupy(system)
        busy = _measure(systems, jobs)
    return Report(
        title="Pickup",
        method=f"{jobs} jobs one after another through each system, in turn, with a random pause between them. The "
        "client notes when it has the 202; the moment of `running` is the one that the job's row names. A job that "
        "runs before its 202 has arrived counts as 0 ms. Second column of times: until the first line of the job's "
        "own work, which is after the commit. Third: from the start of the request. All systems note `running` within "
        "the transaction that they then commit; procrastinate notes its beginning.",
        tables=(_table("One idle worker", idle), _table("One busy and one idle worker", busy)),
        targets=tuple(_targets(idle, busy)),
        notes=() if peer.is_installed() else (peer.ABSENT,),
    )


def _systems(stack: Stack, parts: ExitStack) -> list[System]:
    systems: list[System] = [Calotype(stack, parts), Baseline(stack, parts)]
    if peer.is_installed():
        systems.append(peer.Procrastinate(stack, parts))
    return systems


def _measure(systems: Sequence[System], jobs: int) -> dict[str, list[Sample]]:
    submitters = {system.name: system.submitter() for system in systems}
    samples: dict[str, list[Sample]] = {system.name: [] for system in systems}
    for number in range(WARM_UP + jobs):
        for system in systems:
            sample = _one(system, submitters[system.name])
            if number >= WARM_UP:
                samples[system.name].append(sample)
    return samples


def _one(system: System, submit: Submit) -> Sample:
    time.sleep(random.uniform(*PAUSE_SECONDS))
    job = submit(Plan())
    time.sleep(QUIET_SECONDS)
    return _sample(job, wait_for(lambda: _ended(system, job.id), 60.0, f"the end of a job of {system.name}"))


def _ended(system: System, job_id: str) -> Observed | None:
    seen = system.look(job_id)
    return seen if seen.ended else None


def _sample(job: Submitted, seen: Observed) -> Sample:
    if seen.running is None:
        raise AssertionError("a job ended that never ran")
    work = None if seen.began is None else max(0.0, seen.began - job.accepted)
    return max(0.0, seen.running - job.accepted), work, seen.running - job.sent


def _occupy(system: System) -> None:
    job = system.submitter()(OCCUPATION)
    wait_for(lambda: system.look(job.id).running, 60.0, f"a worker of {system.name} to be busy")


def _table(title: str, samples: Mapping[str, Sequence[Sample]]) -> Table:
    names = list(samples)
    reference = percentile(_running(samples[names[1]]), 0.99)
    return Table(
        title=title,
        columns=(
            "system",
            "202 → running p50",
            "p99",
            "202 → work p50",
            "p99",
            "request → running p50",
            "p99",
            "p99 ratio",
        ),
        rows=tuple(
            (
                name,
                *_pair([sample[0] for sample in samples[name]]),
                *_pair([sample[1] for sample in samples[name] if sample[1] is not None]),
                *_pair([sample[2] for sample in samples[name]]),
                ratio(percentile(_running(samples[name]), 0.99) / max(reference, 1e-4)),
            )
            for name in names
        ),
    )


def _running(samples: Sequence[Sample]) -> list[float]:
    return [sample[0] for sample in samples]


def _pair(values: Sequence[float]) -> tuple[str, str]:
    return (ms(percentile(values, 0.5)), ms(percentile(values, 0.99))) if values else ("–", "–")


def _targets(idle: Mapping[str, Sequence[Sample]], busy: Mapping[str, Sequence[Sample]]) -> list[Target]:
    targets = []
    for situation, samples in (("with an idle worker", idle), ("with one busy and one idle worker", busy)):
        own, baseline = _running(samples[Calotype.name]), _running(samples[Baseline.name])
        p50, p99, theirs = percentile(own, 0.5), percentile(own, 0.99), percentile(baseline, 0.99)
        targets += [
            Target(what=f"pickup {situation}, p50", wanted="≤ 15 ms", measured=ms(p50), met=p50 <= P50_SECONDS),
            Target(what=f"pickup {situation}, p99", wanted="≤ 100 ms", measured=ms(p99), met=p99 <= P99_SECONDS),
            Target(
                what=f"pickup {situation}, p99 against the baseline",
                wanted=f"no worse than {ms(theirs)}",
                measured=ms(p99),
                met=p99 <= theirs,
            ),
        ]
    return targets
