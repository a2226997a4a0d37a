"""The claim on a real Postgres chooses and charges what the rules of `scheduling.py` say, on random small states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from calotype import queue, tables
from calotype.jobs import Family, Kind
from calotype.queue import Claimant
from calotype.queue.statements import as_seconds
from calotype.scheduling import (
    Rate,
    Standing,
    behind,
    charge,
    effective_vtime,
    estimate_seconds,
    fill_batch,
    has_room,
    pool_clock,
    raised,
    same_line,
    standing,
    turn,
)

QUEUES = {"diffusion.generate": Kind.GENERATE, "diffusion.train": Kind.TRAIN}
POOL, ELSEWHERE = "default", "elsewhere"
START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Share:
    vtime: float
    running: int
    idle: bool
    #: Of what it was charged, how much is for the jobs that run; and how long these have run, in device-seconds.
    open: float = 0.0
    took: float = 0.0
    #: What it was owed when it became idle.
    lag: float = 0.0
    #: Of the worker that served it last.
    queues: tuple[str, ...] = tuple(QUEUES)


@dataclass(frozen=True)
class Owner:
    weight: float
    max_running: int | None
    share: Share | None
    running_elsewhere: int


@dataclass(frozen=True)
class Waiting:
    owner: int
    queue: str
    rank: int
    model_key: str | None
    batch_key: str | None
    units: int
    batch_limit: int
    work: float
    attempt: int
    #: "now", or why it may not run.
    may_run: str


@dataclass(frozen=True)
class World:
    owners: Sequence[Owner]
    jobs: Sequence[Waiting]
    rates: dict[tuple[str, str], float]
    paused: frozenset[str]
    queues: frozenset[str]
    loaded: frozenset[str]
    may_pass: bool
    most_units: int


SHARES = st.builds(
    Share,
    vtime=st.sampled_from([0.0, 1.0, 1.0, 2.5, 7.0]),
    running=st.integers(0, 2),
    idle=st.booleans(),
    open=st.sampled_from([0.0, 0.5, 1.0]),
    took=st.sampled_from([0.0, 0.2, 1.0, 6.0]),
    lag=st.sampled_from([0.0, 0.0, 0.3, 2.0]),
    queues=st.sampled_from([tuple(QUEUES), tuple(QUEUES), ("diffusion.generate",), ("diffusion.train",)]),
)
OWNERS = st.builds(
    Owner,
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    max_running=st.sampled_from([None, None, 0, 1, 2, 3]),
    share=st.none() | SHARES,
    running_elsewhere=st.integers(0, 1),
)
MODELS = st.sampled_from([None, "m", "n"])


def _jobs(owners: int) -> st.SearchStrategy[list[Waiting]]:
    one = st.builds(
        Waiting,
        owner=st.integers(0, owners - 1),
        queue=st.sampled_from(sorted(QUEUES)),
        rank=st.integers(0, 3),
        model_key=MODELS,
        batch_key=st.sampled_from([None, "k", "k", "l"]),
        units=st.integers(1, 4),
        batch_limit=st.sampled_from([1, 4, 16]),
        work=st.sampled_from([1.0, 2.0]),
        attempt=st.sampled_from([0, 0, 0, 1]),
        may_run=st.sampled_from(["now", "now", "now", "now", "now", "backoff", "late", "follows"]),
    )
    return st.lists(one, max_size=9)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    owners = draw(st.lists(OWNERS, min_size=1, max_size=4))
    keys = st.tuples(st.sampled_from(sorted(QUEUES)), st.sampled_from(["", "m", "n"]))
    return World(
        owners=owners,
        jobs=draw(_jobs(len(owners))),
        rates=draw(st.dictionaries(keys, st.sampled_from([0.5, 10.0]), max_size=3)),
        paused=draw(st.sampled_from([frozenset(), frozenset(), frozenset({"diffusion.train"})])),
        queues=draw(st.sampled_from([frozenset(QUEUES), frozenset(QUEUES), frozenset({"diffusion.generate"})])),
        loaded=draw(st.frozensets(st.sampled_from(["m", "n"]), max_size=2)),
        may_pass=draw(st.booleans()),
        most_units=draw(st.sampled_from([1, 4, 16])),
    )


# --- The reference: the rules, put together over lists ---


@dataclass(frozen=True)
class Chosen:
    """Positions in ``World.jobs``, with what each is charged; whether the turn was passed over."""

    charges: list[tuple[int, float]]
    passed: bool = False


def choose(world: World) -> Chosen:
    open_queues = world.queues - world.paused
    runnable = [n for n, job in enumerate(world.jobs) if job.may_run == "now" and job.queue in open_queues]
    candidates = [n for n in runnable if _room(world, world.jobs[n].owner, 0)]
    if not candidates:
        return Chosen([])
    clock = _clock(world, {world.jobs[n].owner for n in candidates})
    chosen_owner = min({world.jobs[n].owner for n in candidates}, key=lambda one: _turn(world, one, clock))
    first = min((n for n in candidates if world.jobs[n].owner == chosen_owner), key=lambda n: (world.jobs[n].rank, n))
    needed, passed = world.jobs[first].model_key, False
    if world.may_pass and world.loaded and needed is not None and needed not in world.loaded:
        warm = [n for n in candidates if world.jobs[n].model_key in world.loaded]
        if warm:
            first, passed = min(warm, key=lambda n: (world.jobs[n].rank, n)), True
    batch = [first, *_joining(world, first, runnable)]
    return Chosen(list(_charges(world, batch)), passed)


def _charges(world: World, batch: Sequence[int]) -> Iterator[tuple[int, float]]:
    for n in batch:
        yield n, _charge(world, world.jobs[n])


def _room(world: World, number: int, taken: int) -> bool:
    owner = world.owners[number]
    running = owner.running_elsewhere + (owner.share.running if owner.share else 0)
    return has_room(running + taken, owner.max_running)


def _clock(world: World, waiting: set[int], without: int | None = None) -> float:
    """As if ``without`` did not wait."""
    shares = {n: owner.share for n, owner in enumerate(world.owners) if owner.share is not None}
    clock = pool_clock(
        waiting=[_standing(world, n) for n, share in shares.items() if n in waiting - {without} and not share.idle],
        line=[_standing(world, n) for n, share in shares.items() if same_line(share.queues, world.queues)],
        known=[_standing(world, n) for n in shares],
    )
    return clock or 0.0


def _standing(world: World, number: int) -> Standing:
    owner = world.owners[number]
    share = owner.share or Share(0.0, 0, idle=True)
    return standing(
        vtime=share.vtime,
        settled=share.vtime - share.open,
        device_seconds=share.took,
        weight=owner.weight,
        running=share.running,
    )


def _effective(world: World, number: int, clock: float) -> float:
    share = world.owners[number].share
    own = _standing(world, number) if share else None
    return effective_vtime(own, idle=share.idle if share else True, floor=clock, lag=share.lag if share else 0.0)


def _turn(world: World, number: int, clock: float) -> tuple[Any, ...]:
    share = world.owners[number].share
    own, idle = (_standing(world, number).vtime, share.idle) if share else (None, True)
    # Owners are numbered in the order of their ids.
    running = share.running if share else 0
    return (*turn(_effective(world, number, clock), idle=idle, running=running, own=own), number)


def _joining(world: World, first: int, runnable: Sequence[int]) -> list[int]:
    job = world.jobs[first]
    limit = min(job.batch_limit, world.most_units)
    if job.batch_key is None or job.attempt > 0 or job.units >= limit:
        return []
    alike = [n for n in runnable if n != first and _alike(world.jobs[n], job)]
    taken, allowed = {job.owner: 1}, []
    for n in sorted(alike, key=lambda n: (world.jobs[n].rank, n)):
        owner = world.jobs[n].owner
        if _room(world, owner, taken.get(owner, 0)):
            taken[owner] = taken.get(owner, 0) + 1
            allowed.append(n)
    return [allowed[place] for place in fill_batch(job.units, limit, [world.jobs[n].units for n in allowed])]


def _alike(one: Waiting, first: Waiting) -> bool:
    return (one.batch_key, one.queue, one.attempt) == (first.batch_key, first.queue, 0)


def _charge(world: World, job: Waiting) -> float:
    keys = [(job.queue, job.model_key or ""), (job.queue, "")]
    rates = [Rate(jobs=1, mean=world.rates[key], variance=0.0) if key in world.rates else None for key in keys]
    return charge(estimate_seconds(job.work, QUEUES[job.queue], rates), world.owners[job.owner].weight)


# --- The same state in Postgres ---


def _id(number: int) -> UUID:
    return UUID(int=number + 1)


@pytest.fixture
def conn(engine: Engine) -> Iterator[sa.Connection]:
    with engine.connect() as made:
        yield made
        made.rollback()


def _write(conn: sa.Connection, world: World) -> None:
    owners = list(enumerate(world.owners))
    _insert(
        conn,
        tables.tenants,
        [
            {"id": _id(n), "name": f"t{n}", "weight": owner.weight, "max_running": owner.max_running}
            for n, owner in owners
        ],
    )
    now = conn.execute(sa.text(f"SELECT {as_seconds('now()')}")).scalar_one()
    here = [_share_row(n, owner.share, now) for n, owner in owners if owner.share is not None]
    _insert(conn, tables.shares, here)
    elsewhere = [
        {"pool": ELSEWHERE, "tenant_id": _id(n), "queues": [], "vtime": 99.0, "running": owner.running_elsewhere}
        for n, owner in owners
    ]
    _insert(conn, tables.shares, elsewhere)
    _insert(conn, tables.queue_pauses, [{"queue": name} for name in world.paused])
    rates = [
        {"queue": name, "model_key": model, "jobs": 1, "mean": mean, "variance": 0.0}
        for (name, model), mean in world.rates.items()
    ]
    _insert(conn, tables.rates, rates)
    entries = {(job.queue, _id(job.owner)) for job in world.jobs}
    _insert(conn, tables.tenant_queues, [{"queue": name, "tenant_id": tenant} for name, tenant in entries])
    # One job that others may follow; it runs, so that no claim sees it.
    _insert(conn, tables.jobs, [_leader(), *(_row(n, job) for n, job in enumerate(world.jobs))])


def _insert(conn: sa.Connection, table: sa.Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        conn.execute(table.insert(), rows)


def _share_row(number: int, share: Share, now: float) -> dict[str, Any]:
    return {
        "pool": POOL,
        "tenant_id": _id(number),
        "vtime": share.vtime,
        "settled": share.vtime - share.open,
        "running": share.running,
        "devices": 1.0,
        "device_starts": now - share.took,
        "idle": share.idle,
        "lag": share.lag,
        "queues": list(share.queues),
    }


def _row(number: int, job: Waiting) -> dict[str, Any]:
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    return {
        "id": _id(number),
        "tenant_id": _id(job.owner),
        "kind": QUEUES[job.queue],
        "family": Family.DIFFUSION,
        "queue": job.queue,
        "spec": {},
        "state": "queued",
        "priority": 5,
        "rank": START + timedelta(seconds=job.rank),
        "max_attempts": 3,
        "attempt": job.attempt,
        "model_key": job.model_key,
        "batch_key": job.batch_key,
        "units": job.units,
        "batch_limit": job.batch_limit,
        "work": job.work,
        "available_at": now + hour if job.may_run == "backoff" else START,
        "expires_at": now - hour if job.may_run == "late" else None,
        "leader_id": _id(999) if job.may_run == "follows" else None,
        "lease_expires_at": None,
    }


def _leader() -> dict[str, Any]:
    like = Waiting(0, "diffusion.generate", 0, None, None, 1, 1, 1.0, 1, "now")
    held = {"id": _id(999), "state": "running", "lease_expires_at": datetime.now(UTC) + timedelta(hours=1)}
    return {**_row(0, like), **held}


def _plain(owner: int, rank: int = 0) -> Waiting:
    return Waiting(owner, "diffusion.generate", rank, None, None, 1, 1, 1.0, 0, "now")


def _owner(share: Share | None, max_running: int | None = None) -> Owner:
    return Owner(weight=1.0, max_running=max_running, share=share, running_elsewhere=0)


def _world(owners: Sequence[Owner]) -> World:
    jobs, everywhere = [_plain(number) for number in range(len(owners))], frozenset(QUEUES)
    return World(owners, jobs, {}, frozenset(), everywhere, frozenset(), may_pass=False, most_units=1)


#: A tenant at its limit, though its time is the least, does not hold the clock back for the new one.
LIMITED = _world([_owner(Share(1.0, 1, idle=False), 1), _owner(Share(7.0, 0, idle=False)), _owner(None)])
#: While nobody else waits, a job of a tenant that had little does not turn the clock back for who comes, nor does one
#: of other workers, with other queues, put it forward.
LONG_JOB = World(
    [
        _owner(Share(1.0, 1, idle=False, open=0.5)),
        _owner(Share(9.0, 0, idle=True)),
        _owner(Share(99.0, 1, idle=False, open=1.0, queues=("diffusion.train",))),
        _owner(None),
    ],
    [_plain(3)],
    {},
    frozenset(),
    frozenset({"diffusion.generate"}),
    frozenset(),
    may_pass=False,
    most_units=1,
)
#: Of a job that runs counts for the clock what it took by now, not what was charged: neither too much nor too little.
ESTIMATES = [
    _world([_owner(Share(7.0, 1, idle=False, open=5.0, took=took)), _owner(None)]) for took in (0.25, 4.0, 9.0)
]
#: At the clock who comes back goes first, even when it has something running.
COMES_BACK = _world([_owner(Share(2.5, 0, idle=False)), _owner(Share(2.5, 1, idle=True))])

#: Who comes back and must wait for its turn, for what its running job is charged, is idle no longer.
WAITS_FOR_ITS_TURN = _world(
    [_owner(Share(2.5, 0, idle=False)), _owner(Share(7.0, 1, idle=True, open=6.0, took=0.2, lag=0.3))]
)


@given(world=worlds())
@example(world=LIMITED)
@example(world=COMES_BACK)
@example(world=WAITS_FOR_ITS_TURN)
@example(world=LONG_JOB)
@example(world=ESTIMATES[0])
@example(world=ESTIMATES[1])
@example(world=ESTIMATES[2])
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_claim_takes_and_charges_what_the_rules_say(
    conn: sa.Connection, make_claimant: Callable[[], Claimant], world: World
) -> None:
    _write(conn, world)
    claimant = replace(
        make_claimant(),
        queues=sorted(world.queues),
        loaded=sorted(world.loaded),
        may_pass=world.may_pass,
        most_units=world.most_units,
    )
    expected = choose(world)
    claimed = queue.claim_batch(conn, claimant)
    got = [(job.id, pytest.approx(job.charged)) for job in claimed.jobs]
    shares = _shares(conn)
    conn.rollback()
    assert [(_id(n), charged) for n, charged in expected.charges] == got
    assert claimed.passed == expected.passed
    assert shares == _expected_shares(world, expected)


def _shares(conn: sa.Connection) -> dict[UUID, tuple[Any, ...]]:
    """Virtual time, the same without charges of running jobs, what is charged beyond these, whether idle, the lag."""
    table = tables.shares
    rows = conn.execute(sa.select(table).where(table.c.pool == POOL)).mappings()
    return {row["tenant_id"]: tuple(row[name] for name in KEPT) for row in rows}


KEPT = ("vtime", "settled", "overdue", "idle", "lag")


def _expected_shares(world: World, chosen: Chosen) -> dict[UUID, tuple[Any, ...]]:
    """Who was idle starts at the pool's clock; who got something is charged for it."""
    after = {
        _id(n): _kept(owner.share, owner.share.idle, owner.share.lag)
        for n, owner in enumerate(world.owners)
        if owner.share is not None
    }
    runnable = {job.owner for job in world.jobs if job.may_run == "now" and job.queue in world.queues - world.paused}
    waiting = {owner for owner in runnable if _room(world, owner, 0)}
    taken = {number for number, _ in chosen.charges}
    for owner in {world.jobs[number].owner for number in taken}:
        share = world.owners[owner].share or Share(0.0, 0, idle=True)
        due = [charged for number, charged in chosen.charges if world.jobs[number].owner == owner]
        own, clock = _standing(world, owner), _clock(world, waiting, owner)
        passed = raised(own.given, floor=clock, lag=share.lag) if share.idle else 0.0
        idle = not _room(world, owner, len(due)) or not _waits(world, owner, taken)
        lag, overdue = behind(own.given + passed, floor=clock), own.vtime - share.vtime
        after[_id(owner)] = _kept(share, idle, lag, passed=passed, due=sum(due), overdue=overdue)
    return after | (_come_back(world, taken, _clock(world, waiting)) if taken else {})


def _come_back(world: World, taken: set[int], clock: float) -> dict[UUID, tuple[Any, ...]]:
    """Who was idle and waits for its turn, because of what its running jobs are charged, is so no longer."""
    served = {world.jobs[number].owner for number in taken}
    come = {n: one.share for n, one in enumerate(world.owners) if one.share is not None and n not in served}
    return {
        _id(n): _kept(share, False, share.lag, passed=raised(_standing(world, n).given, floor=clock, lag=share.lag))
        for n, share in come.items()
        if share.idle and share.running and share.vtime > clock and _room(world, n, 0) and _waits(world, n, taken)
    }


def _kept(
    share: Share, idle: bool, lag: float, *, passed: float = 0.0, due: float = 0.0, overdue: float = 0.0
) -> tuple[Any, ...]:
    settled = share.vtime - share.open + passed
    return _about(share.vtime + passed + due + overdue), _about(settled), _about(overdue), idle, _about(lag)


def _about(value: float) -> Any:
    return pytest.approx(value, abs=1e-4)


def _waits(world: World, owner: int, taken: set[int]) -> bool:
    """Whether other jobs of the tenant wait for the worker, or for the one that served it before."""
    share = world.owners[owner].share
    queues = world.queues | set(share.queues if share else ())
    mine = (job for n, job in enumerate(world.jobs) if n not in taken and job.owner == owner and job.queue in queues)
    return any(job.may_run in ("now", "late") for job in mine)


@pytest.fixture
def make_claimant(make_worker: Callable[..., UUID]) -> Callable[[], Claimant]:
    worker = make_worker(tuple(QUEUES))
    return lambda: Claimant(worker_id=worker, queues=(), lease_seconds=60.0, pool=POOL)
