"""Which job next, asked of the database: the rules of :mod:`calotype.scheduling` as statements.

A claim takes three steps, a statement each. It *looks*, without a lock: whose turn is it, which job, and what could
share its call of the model. It *locks* the shares of these tenants in the pool, in the order of their ids. And it
*takes*, with a fresh look under those locks: first job, batch, charges, states and events in one statement.

Claims of one tenant and pool follow one another, so that virtual time, running limits and the order of a tenant's jobs
hold exactly; claims of different tenants do not wait for each other. A claim never waits for a job's row, so it cannot
deadlock with a worker that ends a job and then wants the share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from psycopg.errors import LockNotAvailable

from calotype.jobs import Job
from calotype.queue import statements
from calotype.queue.rows import interval
from calotype.scheduling import fill_batch

DEFAULT_POOL = "default"
#: Rounds of a claim: each is a tenant whose jobs others took, or whose limit was reached, since the look.
MOST_ROUNDS = 100
#: Jobs that a claim looks at, at most, to find some that share a batch or need a loaded model.
MOST_LOOKED_AT = 32


@dataclass(frozen=True, kw_only=True)
class Claimant:
    """A worker that asks for work."""

    worker_id: UUID
    queues: Sequence[str]
    lease_seconds: float
    #: Workers whose device time is shared out together.
    pool: str = DEFAULT_POOL
    #: Keys of the models it has loaded.
    loaded: Sequence[str] = ()
    #: Whether a job for a loaded model may go before the one whose turn it is.
    may_pass: bool = False
    #: Units (images) that it takes into one call; 1: no batches.
    most_units: int = 1


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """What a claim gave."""

    #: The chosen job, then those that share its batch.
    jobs: tuple[Job, ...]
    #: Another job's turn was passed over for a loaded model.
    passed: bool = False
    #: No jobs, though some waited a moment ago: others took them, or had them or their tenant locked.
    contended: bool = False


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """A job as a look saw it: nothing is locked yet."""

    id: UUID
    tenant_id: UUID
    queue: str
    model_key: str | None
    batch_key: str | None
    units: int
    batch_limit: int
    attempt: int
    #: Whether others may be there that could share its call of the model.
    has_alike: bool
    #: Whether its tenant has a share of the pool yet.
    has_share: bool
    #: How many more jobs of its tenant may run; None: no limit.
    room: int | None
    #: The virtual time that the pool has come to, the tenant that sets it, and what it would be without that one.
    clock: float
    following: UUID | None
    beyond: float

    def needs_loading(self, loaded: Sequence[str]) -> bool:
        return self.model_key is not None and self.model_key not in loaded

    @property
    def clocks(self) -> dict[str, Any]:
        return {"clock": self.clock, "following": self.following, "beyond": self.beyond}


def claim(conn: sa.Connection, worker_id: UUID, queues: Sequence[str], lease_seconds: float) -> Job | None:
    """Takes the one job whose turn it is in any of ``queues``, or None when there is none."""
    claimed = claim_batch(conn, Claimant(worker_id=worker_id, queues=queues, lease_seconds=lease_seconds))
    return claimed.jobs[0] if claimed.jobs else None


def claim_batch(conn: sa.Connection, claimant: Claimant) -> Claimed:
    """Takes the job whose turn it is and what fits into its batch; no jobs when there is nothing to run.

    Every job gets its own epoch, attempt and lease, and is charged to its own tenant.
    """
    in_vain: list[UUID] = []
    for _ in range(MOST_ROUNDS):
        turn = _look(conn, claimant, in_vain)
        if turn is None:
            break
        loaded = _look_for_loaded(conn, claimant, turn, in_vain)
        if loaded is not None:
            jobs = _lock_and_take(conn, claimant, loaded, in_vain, in_turn=False)
            if jobs:
                return Claimed(jobs=jobs, passed=True)
            in_vain.append(loaded.tenant_id)
        jobs = _lock_and_take(conn, claimant, turn, in_vain, in_turn=True)
        if jobs:
            return Claimed(jobs=jobs)
        in_vain.append(turn.tenant_id)
    return Claimed(jobs=(), contended=bool(in_vain))


def _look(conn: sa.Connection, claimant: Claimant, in_vain: Sequence[UUID]) -> _Seen | None:
    """The job whose turn it is."""
    values = {**_common(claimant), "pool": claimant.pool, "in_vain": list(in_vain)}
    row = conn.execute(statements.LOOK, values).mappings().one_or_none()
    return _Seen(**row) if row is not None else None


def _look_for_loaded(conn: sa.Connection, claimant: Claimant, turn: _Seen, in_vain: Sequence[UUID]) -> _Seen | None:
    """The best-ranked job for a loaded model, when it may go before the one whose turn it is."""
    if not (claimant.may_pass and claimant.loaded and turn.needs_loading(claimant.loaded)):
        return None
    values = {**_common(claimant), "loaded": list(claimant.loaded), "most": MOST_LOOKED_AT}
    values |= {"pool": claimant.pool, "in_vain": list(in_vain), **turn.clocks}
    row = conn.execute(statements.LOOK_FOR_LOADED, values).mappings().one_or_none()
    return _Seen(**row) if row is not None else None


def _lock_and_take(
    conn: sa.Connection, claimant: Claimant, first: _Seen, in_vain: Sequence[UUID], *, in_turn: bool
) -> tuple[Job, ...]:
    """Takes a job, in its tenant's turn whichever is the best by now, and its batch; leaves no lock when it is gone.

    What would join is left out when its tenant's share is locked for longer than a transaction of ours takes. After a
    round in vain the claim waits for nobody: it has waited once, or holds a share for nothing.
    """
    members = [job for job in _members(conn, claimant, first) if job.tenant_id not in in_vain]
    if not members and not in_vain and first.has_share and first.room is None:
        jobs, locked = _take_at_once(conn, claimant, first, in_turn=in_turn)
        if locked:
            return jobs
    for wait in (False,) if in_vain else (True, False):
        try:
            return _try(conn, claimant, first, members, in_turn=in_turn, wait=wait)
        except sa.exc.OperationalError as exc:
            if not isinstance(exc.orig, LockNotAvailable):
                raise
    return ()


def _take_at_once(
    conn: sa.Connection, claimant: Claimant, first: _Seen, *, in_turn: bool
) -> tuple[tuple[Job, ...], bool]:
    """Takes a job alone when nobody has its tenant's share locked; gives the jobs and whether the share was free.

    Most claims are of this kind: one share, no limit. They need no savepoint, for nothing here waits or fails.
    """
    if first.tenant_id not in _lock_shares(conn, claimant, [first], wait=False):
        return (), False
    return _take(conn, claimant, first, (), in_turn=in_turn), True


def _try(
    conn: sa.Connection, claimant: Claimant, first: _Seen, members: Sequence[_Seen], *, in_turn: bool, wait: bool
) -> tuple[Job, ...]:
    """Two claims that each held a share and waited for the other's would be a deadlock: it holds none for nothing."""
    with conn.begin_nested() as savepoint:
        locked = _lock_shares(conn, claimant, [first, *members], wait=wait)
        jobs: tuple[Job, ...] = ()
        if first.tenant_id in locked:
            joining = [member for member in members if member.tenant_id in locked]
            jobs = _take(conn, claimant, first, joining, in_turn=in_turn)
        if not jobs:
            savepoint.rollback()
    return jobs


def _members(conn: sa.Connection, claimant: Claimant, first: _Seen) -> list[_Seen]:
    """What can join the batch. A job that was tried before runs alone: one that kills its worker takes no others."""
    limit = min(first.batch_limit, claimant.most_units)
    if first.batch_key is None or not first.has_alike or first.attempt > 0 or first.units >= limit:
        return []
    values = {
        "pool": claimant.pool,
        "batch_key": first.batch_key,
        "queue": first.queue,
        "first": first.id,
        "most": MOST_LOOKED_AT,
        **first.clocks,
    }
    rows = conn.execute(statements.LOOK_FOR_ALIKE, values).mappings()
    waiting = list(_within_limits(first, (_Seen(**row) for row in rows)))
    return [waiting[place] for place in fill_batch(first.units, limit, [job.units for job in waiting])]


def _within_limits(first: _Seen, waiting: Iterable[_Seen]) -> Iterator[_Seen]:
    counts = {first.tenant_id: 1}
    for job in waiting:
        counted = counts.get(job.tenant_id, 0)
        if job.room is None or counted < job.room:
            counts[job.tenant_id] = counted + 1
            yield job


def _lock_shares(conn: sa.Connection, claimant: Claimant, jobs: Sequence[_Seen], *, wait: bool) -> set[UUID]:
    """Locks the tenants' shares of the pool, made when missing, and their running limits; all claims in one order.

    Gives the tenants: without ``wait`` those whose locks are to be had at once.
    """
    new = sorted({job.tenant_id for job in jobs if not job.has_share})
    if new:
        values = {"pool": claimant.pool, "tenants": new, "queues": sorted(claimant.queues)}
        conn.execute(statements.MAKE_SHARES, values)
    statement = statements.LOCK_SHARES if wait else statements.LOCK_FREE_SHARES
    tenants = sorted({job.tenant_id for job in jobs})
    return set(conn.execute(statement, {"pool": claimant.pool, "tenants": tenants}).scalars())


def _take(
    conn: sa.Connection, claimant: Claimant, first: _Seen, members: Sequence[_Seen], *, in_turn: bool
) -> tuple[Job, ...]:
    values = {
        **_common(claimant),
        "pool": claimant.pool,
        "tenant_id": first.tenant_id,
        "first": first.id,
        **first.clocks,
        "lease": interval(claimant.lease_seconds),
    }
    among = {
        "members": [member.id for member in members],
        "tenants": sorted({first.tenant_id, *(member.tenant_id for member in members)}),
    }
    statements_of = statements.TAKE_IN_TURN if in_turn else statements.TAKE_SEEN
    jobs = _taken(conn, statements_of[not members], values | among if members else values)
    return jobs or (_taken(conn, statements.TAKE_FARTHER, values) if in_turn else ())


def _taken(conn: sa.Connection, statement: sa.TextClause, values: Mapping[str, Any]) -> tuple[Job, ...]:
    return tuple(Job.from_row(row) for row in conn.execute(statement, values).mappings())


def _common(claimant: Claimant) -> dict[str, Any]:
    return {"queues": sorted(claimant.queues), "worker_id": claimant.worker_id}
