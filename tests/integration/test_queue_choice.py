"""The claim on a real Postgres chooses and charges what the rules of `scheduling.py` say, on random small states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
from calotype.scheduling import (
    Rate,
    charge,
    effective_vtime,
    estimate_seconds,
    fill_batch,
    has_room,
    pool_clock,
    same_line,
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
    began: float = 0.0
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
    began=st.sampled_from([0.0, 0.5, 2.0, 4.0]),
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
    return Chosen([(n, _charge(world, world.jobs[n])) for n in batch], passed)


def _room(world: World, number: int, taken: int) -> bool:
    owner = world.owners[number]
    running = owner.running_elsewhere + (owner.share.running if owner.share else 0)
    return has_room(running + taken, owner.max_running)


def _clock(world: World, waiting: set[int]) -> float:
    shares = {n: owner.share for n, owner in enumerate(world.owners) if owner.share is not None}
    clock = pool_clock(
        waiting=[share.vtime for n, share in shares.items() if n in waiting and not share.idle],
        began=_began(world, shares.values()),
        known=[share.vtime for share in shares.values()],
    )
    return clock or 0.0


def _began(world: World, shares: Iterable[Share]) -> list[float]:
    served = [share for share in shares if same_line(share.queues, world.queues)]
    return [share.began for share in served] if any(share.running for share in served) else []


def _turn(world: World, number: int, clock: float) -> tuple[Any, ...]:
    share = world.owners[number].share
    own, idle = (share.vtime, share.idle) if share else (None, True)
    vtime = effective_vtime(own, idle=idle, floor=clock)
    # Owners are numbered in the order of their ids.
    return (*turn(vtime, idle=idle, running=share.running if share else 0, own=own), number)


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
    here = [
        {"pool": POOL, "tenant_id": _id(n), **vars(owner.share), "queues": list(owner.share.queues)}
        for n, owner in owners
        if owner.share is not None
    ]
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
#: While nobody else waits, a job that began long ago does not turn the clock back for who comes, nor does one of other
#: workers, with other queues, put it forward.
LONG_JOB = World(
    [
        _owner(Share(1.0, 1, idle=False, began=0.5)),
        _owner(Share(9.0, 0, idle=True, began=7.0)),
        _owner(Share(99.0, 1, idle=False, began=98.0, queues=("diffusion.train",))),
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
#: At the clock who comes back goes first, even when it has something running.
COMES_BACK = _world([_owner(Share(2.5, 0, idle=False)), _owner(Share(2.5, 1, idle=True))])


@given(world=worlds())
@example(world=LIMITED)
@example(world=COMES_BACK)
@example(world=LONG_JOB)
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
    vtime, began = _shares(conn, "vtime"), _shares(conn, "began")
    conn.rollback()
    assert [(_id(n), charged) for n, charged in expected.charges] == got
    assert claimed.passed == expected.passed
    expected_vtime, expected_began = _expected_shares(world, expected)
    assert vtime == pytest.approx(expected_vtime)
    assert began == pytest.approx(expected_began)


def _shares(conn: sa.Connection, column: str) -> dict[UUID, float]:
    table = tables.shares
    rows = conn.execute(sa.select(table.c.tenant_id, table.c[column]).where(table.c.pool == POOL))
    return {row.tenant_id: row[1] for row in rows}


def _expected_shares(world: World, chosen: Chosen) -> tuple[dict[UUID, float], dict[UUID, float]]:
    """Who was idle starts at the pool's clock; who got something is charged for it, and had its turn if it is first."""
    after = {_id(n): owner.share.vtime for n, owner in enumerate(world.owners) if owner.share is not None}
    began = {_id(n): owner.share.began for n, owner in enumerate(world.owners) if owner.share is not None}
    runnable = {job.owner for job in world.jobs if job.may_run == "now" and job.queue in world.queues - world.paused}
    clock = _clock(world, {owner for owner in runnable if _room(world, owner, 0)})
    due: dict[int, float] = {}
    for number, charged in chosen.charges:
        owner = world.jobs[number].owner
        due[owner] = due.get(owner, 0.0) + charged
    for owner, charged in due.items():
        share = world.owners[owner].share
        own, idle = (share.vtime, share.idle) if share else (None, True)
        before = effective_vtime(own, idle=idle, floor=clock)
        after[_id(owner)] = before + charged
        began.setdefault(_id(owner), 0.0)
        if not chosen.passed and owner == world.jobs[chosen.charges[0][0]].owner:
            began[_id(owner)] = before
    return after, began


@pytest.fixture
def make_claimant(make_worker: Callable[..., UUID]) -> Callable[[], Claimant]:
    worker = make_worker(tuple(QUEUES))
    return lambda: Claimant(worker_id=worker, queues=(), lease_seconds=60.0, pool=POOL)
