"""Submit rate: how many jobs a second one API process takes on, against the baseline with the same server settings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from benchmarks import processes, services
from benchmarks.figures import ms, percentile, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale
from benchmarks.standin import Plan
from benchmarks.systems import Submit
from benchmarks.systems.own import Calotype
from benchmarks.systems.plain import Baseline
from benchmarks.threads import run_all
from calotype.local.process import Process

CLIENTS = 8
#: Each system is loaded this often, in turn, so that what disturbs the machine disturbs both.
ROUNDS = 4
WARM_UP_SECONDS = 2.0


@dataclass
class Tally:
    """What the clients of one system saw, over all rounds."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    #: Of the server's processes.
    cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def cpu_each(self) -> float:
        return self.cpu_seconds / len(self.latencies)


def main(scale: Scale = Scale.STANDARD) -> Report:
    seconds = scale.pick(0.5, 8.0, 30.0)
    with services.running() as stack, ExitStack() as parts:
        systems = (Calotype(stack, parts), Baseline(stack, parts))
        submitters = {system.name: [system.submitter() for _ in range(CLIENTS)] for system in systems}
        tallies = {system.name: Tally() for system in systems}
        for system in systems:
            _load(submitters[system.name], min(WARM_UP_SECONDS, seconds))
        for _ in range(ROUNDS):
            for system in systems:
                _add(tallies[system.name], submitters[system.name], seconds, system.api)
    own, baseline = tallies[Calotype.name], tallies[Baseline.name]
    return Report(
        title="Submit rate",
        method=f"{CLIENTS} clients with a kept connection each submit as fast as they are answered, {ROUNDS} rounds of "
        f"{seconds:g} s a system, in turn. Calotype authenticates, checks model and sizes, draws a seed, and records "
        "an idempotency key of its own for each job; the baseline checks the body. No worker runs. The clients share "
        "the processor with the servers: the server's own CPU time a request is in the last column.",
        tables=(_table(tallies),),
        targets=(
            Target(
                what="submit rate against the baseline's",
                wanted="ratio ≥ 1",
                measured=ratio(own.rate / baseline.rate),
                met=own.rate >= baseline.rate,
            ),
        ),
    )


def _add(tally: Tally, submitters: Sequence[Submit], seconds: float, server: Process) -> None:
    before, began = processes.cpu_seconds(server), time.monotonic()
    tally.latencies += _load(submitters, seconds)
    tally.seconds += time.monotonic() - began
    tally.cpu_seconds += processes.cpu_seconds(server) - before


def _load(submitters: Sequence[Submit], seconds: float) -> list[float]:
    """Submit from as many threads; gives the seconds that each submission took."""
    latencies: list[float] = []
    until = time.monotonic() + seconds

    def client(submit: Submit) -> None:
        while time.monotonic() < until:
            job = submit(Plan())
            latencies.append(job.accepted - job.sent)

    run_all([partial(client, submit) for submit in submitters])
    return latencies


def _table(tallies: Mapping[str, Tally]) -> Table:
    reference = tallies[Baseline.name]
    return Table(
        title=f"{CLIENTS} clients, one API process",
        columns=("system", "jobs a second", "ratio", "p50", "p99", "server CPU a request"),
        rows=tuple(
            (
                name,
                f"{tally.rate:.0f}",
                ratio(tally.rate / reference.rate),
                ms(percentile(tally.latencies, 0.5)),
                ms(percentile(tally.latencies, 0.99)),
                ms(tally.cpu_each),
            )
            for name, tally in tallies.items()
        ),
    )
