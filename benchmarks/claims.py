"""What a claim costs as the queue grows and as the table ages: the whole transaction, commit included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from benchmarks import services
from benchmarks.backlog import BATCH, TENANTS, Backlog
from benchmarks.figures import ms, percentile, ratio
from benchmarks.results import Report, Table, Target
from benchmarks.scale import Scale

SHALLOW = 1_000
P50_SECONDS = 0.005
DEPTH_RATIO = 1.5
AGE_RATIO = 1.2

#: Seconds of claims by the name of the database they were made in.
Samples = Mapping[str, Sequence[float]]


def main(scale: Scale = Scale.STANDARD) -> Report:
    claims = scale.pick(20, 500, 1_000)
    depth = scale.pick(3_000, 1_000_000, 1_000_000)
    cycles = scale.pick(200, 20_000, 200_000)
    with services.running() as stack, ExitStack() as parts:
        by_depth = {
            f"{SHALLOW:,} queued": Backlog(stack, parts, "shallow", SHALLOW),
            f"{depth:,} queued": Backlog(stack, parts, "deep", depth),
        }
        singles, _ = _in_turn(by_depth, claims, most_units=1)
        batches, batch_size = _in_turn(by_depth, max(1, claims // BATCH), most_units=BATCH)
        aged = Backlog(stack, parts, "aged", SHALLOW)
        aged.age(cycles)
        by_age = {"a fresh table": Backlog(stack, parts, "fresh", SHALLOW), f"after {cycles:,} cycles": aged}
        ages, _ = _in_turn(by_age, claims, most_units=1)
    return Report(
        title="Claims",
        method=f"{claims} times in turn on each of two databases of the same server: claim (timed, with its commit), "
        f"finish, submit, so that the depth stays. {TENANTS} tenants; the claimant asks as a worker does that has the "
        f"model loaded. For the last table one database has been through {cycles:,} cycles of submit, claim and finish "
        f"with a backlog of {SHALLOW:,}; the other is new.",
        tables=(
            _table("One job a claim", singles),
            _table(f"A batch of up to {BATCH} a claim: {batch_size:.1f} jobs on average", batches),
            _table("As the table ages, one job a claim", ages),
        ),
        targets=(*_depth_targets(singles), _age_target(ages)),
    )


def _in_turn(backlogs: Mapping[str, Backlog], claims: int, *, most_units: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each claim by database, and the mean number of jobs that a claim gave."""
    samples: dict[str, list[float]] = {name: [] for name in backlogs}
    given = []
    # At a tenant's first claim its share is made; that is not what is measured.
    warm_up = TENANTS if most_units == 1 else 3
    for number in range(warm_up + claims):
        for name, backlog in backlogs.items():
            seconds, jobs = backlog.cycle(most_units)
            if number >= warm_up:
                samples[name].append(seconds)
                given.append(jobs)
    return samples, sum(given) / len(given)


def _table(title: str, samples: Samples) -> Table:
    medians = {name: percentile(values, 0.5) for name, values in samples.items()}
    reference = next(iter(medians.values()))
    return Table(
        title=title,
        columns=("jobs", "claim p50", "claim p99", "p50 ratio"),
        rows=tuple(
            (name, ms(medians[name]), ms(percentile(values, 0.99)), ratio(medians[name] / reference))
            for name, values in samples.items()
        ),
    )


def _depth_targets(samples: Samples) -> tuple[Target, Target]:
    (_, small), (name, large) = samples.items()
    p50 = percentile(large, 0.5)
    growth = p50 / percentile(small, 0.5)
    return (
        Target(what=f"claim at {name}, p50", wanted="≤ 5 ms", measured=ms(p50), met=p50 <= P50_SECONDS),
        Target(
            what=f"claim at {name} against {SHALLOW:,}, p50",
            wanted=f"ratio ≤ {DEPTH_RATIO}",
            measured=ratio(growth),
            met=growth <= DEPTH_RATIO,
        ),
    )


def _age_target(samples: Samples) -> Target:
    (_, fresh), (name, aged) = samples.items()
    growth = percentile(aged, 0.5) / percentile(fresh, 0.5)
    return Target(
        what=f"claim {name} against a fresh table, p50",
        wanted=f"ratio ≤ {AGE_RATIO}",
        measured=ratio(growth),
        met=growth <= AGE_RATIO,
    )
