"""Every interleaving of two workers, a reaper and a user up to a depth, on the real statements of the queue.

A step is one transaction of one of them. Steps run inside savepoints of one connection, so that the search can take a
step back, and states that were seen before are not explored again. What a step does is compared with what may happen:

- a worker that does not hold the job any more is refused, and changes nothing;
- an epoch is given out once, and grows;
- only a lapsed lease is reaped;
- what has ended never changes, and has artifacts exactly if it succeeded: those of the epoch that finished it;
- no more attempts are charged than the job has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Connection

from calotype import queue, tables
from calotype.artifacts import Artifact, job_prefix
from calotype.errors import CancelRequested, Conflict, LeaseLost
from calotype.jobs import HELD, TERMINAL, Job, JobError, State

QUEUE = "diffusion.generate"
LEASE = 600.0
LATER = JobError(code="dependency_down", title="Away", detail="The store is away.", retryable=True)

#: The functions of the queue that are explored, by name; a test replaces some by broken ones.
Moves = Mapping[str, Callable[..., Any]]
NAMES = ("claim", "heartbeat", "finish", "fail", "release", "acknowledge_cancel", "cancel", "reap")
REAL: Moves = {name: getattr(queue, name) for name in NAMES}


class ViolationError(AssertionError):
    """Something happened that must not; says after which steps."""

    def __init__(self, what: str, steps: Sequence[str]) -> None:
        super().__init__(f"{what}, after: {', '.join(steps)}")
        self.steps = tuple(steps)


@dataclasses.dataclass(frozen=True)
class Hold:
    """A claim as its worker remembers it."""

    job: UUID
    epoch: int


@dataclasses.dataclass(frozen=True)
class World:
    """What the actors remember, and who of them may write."""

    #: By worker: its claim, until its last word or its crash.
    claims: tuple[tuple[str, Hold | None], ...]
    #: The claims that are in force.
    holds: frozenset[Hold]
    #: The epochs given out so far, by job.
    given: frozenset[Hold]
    canceled: frozenset[UUID]

    def claim_of(self, worker: str) -> Hold | None:
        return dict(self.claims)[worker]

    def anonymous(self) -> tuple[Any, ...]:
        """The same for worlds that differ in the names of the workers alone."""
        remembered = sorted((hold for _, hold in self.claims), key=repr)
        return (tuple(remembered), self.holds, self.given, self.canceled)

    def remember(self, worker: str, hold: Hold | None) -> World:
        claims = tuple((name, hold if name == worker else own) for name, own in self.claims)
        return dataclasses.replace(self, claims=claims)


#: What can be seen of a job: everything that a late write must not touch.
Row = tuple[State, int, int, bool, int, tuple[str, ...], int | None]
Rows = tuple[tuple[UUID, Row], ...]
Step = tuple[str, Callable[[World], World]]


@dataclasses.dataclass
class Explorer:
    """A depth-first search; `run` raises ViolationError at the first state that must not be."""

    conn: Connection
    tenant_id: UUID
    workers: Mapping[str, UUID]
    moves: Moves = dataclasses.field(default_factory=lambda: REAL)
    #: Steps taken and distinct states seen.
    steps: int = 0
    seen: dict[Any, int] = dataclasses.field(default_factory=dict)
    _path: list[str] = dataclasses.field(default_factory=list)

    def run(self, depth: int) -> None:
        world = World(
            claims=tuple((name, None) for name in self.workers),
            holds=frozenset(),
            given=frozenset(),
            canceled=frozenset(),
        )
        self._explore(world, self._rows(), depth)

    def _explore(self, world: World, rows: Rows, depth: int) -> None:
        # Which worker is which does not matter.
        state = (world.anonymous(), rows)
        if self.seen.get(state, -1) >= depth:
            return
        self.seen[state] = depth
        if depth == 0:
            return
        for name, step in self._enabled(world, rows):
            before = self.conn.begin_nested()
            self._path.append(name)
            self.steps += 1
            try:
                after = step(world)
                found = self._rows()
                self._check(dict(rows), found, after)
                self._explore(after, found, depth - 1)
            finally:
                self._path.pop()
                before.rollback()

    def _enabled(self, world: World, rows: Rows) -> Iterator[Step]:
        for worker in self.workers:
            if world.claim_of(worker) is None:
                yield f"{worker} claims", lambda world, worker=worker: self._claim(world, worker)
                continue
            yield f"{worker} dies", lambda world, worker=worker: world.remember(worker, None)
            for what in ("heartbeat", "finish", "fail", "release", "acknowledge_cancel"):
                yield f"{worker}: {what}", lambda world, worker=worker, what=what: self._write(world, worker, what)
        yield "time passes", self._lapse
        yield "reap", self._reap
        for job, _ in rows:
            if job not in world.canceled:
                yield "cancel", lambda world, job=job: self._cancel(world, job)

    # Steps. Each is one transaction: what raises has changed nothing.

    def _claim(self, world: World, worker: str) -> World:
        with self.conn.begin_nested():
            job: Job | None = self.moves["claim"](self.conn, self.workers[worker], [QUEUE], LEASE)
        if job is None:
            return world
        hold = Hold(job.id, job.epoch)
        if any(other.job == job.id and other.epoch >= job.epoch for other in world.given):
            raise self._violation(f"epoch {job.epoch} was given out before")
        if any(other.job == job.id for other in world.holds):
            raise self._violation("a job was claimed that another holds")
        return dataclasses.replace(world.remember(worker, hold), holds=world.holds | {hold}, given=world.given | {hold})

    def _write(self, world: World, worker: str, what: str) -> World:
        hold = world.claim_of(worker)
        assert hold is not None
        held, before = hold in world.holds, self._rows()
        try:
            with self.conn.begin_nested():
                self._arguments(what, hold)()
        except LeaseLost:
            if held:
                raise self._violation(f"{what} of the worker that holds the job was refused") from None
            # It knows now.
            return world.remember(worker, None)
        except (CancelRequested, Conflict):
            # To finish what was canceled, or to acknowledge what was not: no last word, so it goes on.
            if not held or self._rows() != before:
                raise self._violation(f"{what} was answered as if it held the job") from None
            return world
        if not held:
            raise self._violation(f"{what} was accepted from a worker whose lease is lost")
        if what == "heartbeat":
            return world
        return dataclasses.replace(world.remember(worker, None), holds=world.holds - {hold})

    def _arguments(self, what: str, hold: Hold) -> Callable[[], Any]:
        move = self.moves[what]
        if what == "heartbeat":
            return lambda: move(self.conn, hold.job, hold.epoch, LEASE)
        if what == "finish":
            return lambda: move(self.conn, hold.job, hold.epoch, self._outcome(hold))
        if what == "fail":
            return lambda: (move(self.conn, hold.job, hold.epoch, LATER, 0.0), self._end_backoff())
        return lambda: move(self.conn, hold.job, hold.epoch)

    def _outcome(self, hold: Hold) -> queue.Outcome:
        key = f"{job_prefix(self.tenant_id, hold.job, hold.epoch)}image-0.png"
        image = Artifact(name="image-0.png", object_key=key, content_type="image/png", bytes=1, sha256="a" * 64)
        return queue.Outcome(result={"epoch": hold.epoch}, artifacts=[image])

    def _end_backoff(self) -> None:
        # The clock of a transaction stands still, and all steps share one.
        self.conn.execute(tables.jobs.update().values(available_at=sa.func.now()))

    def _lapse(self, world: World) -> World:
        held = tables.jobs.c.lease_expires_at.is_not(None)
        past = sa.text("now() - interval '1 s'")
        self.conn.execute(tables.jobs.update().where(held).values(lease_expires_at=past))
        return world

    def _reap(self, world: World) -> World:
        lapsed = {job for job, (_, _, _, lapsed, *_) in self._rows() if lapsed}
        with self.conn.begin_nested():
            reaped = {job.id for job in self.moves["reap"](self.conn)}
        if reaped != lapsed:
            raise self._violation("reaped other leases than those that lapsed")
        return dataclasses.replace(world, holds=frozenset(hold for hold in world.holds if hold.job not in reaped))

    def _cancel(self, world: World, job: UUID) -> World:
        with self.conn.begin_nested():
            self.moves["cancel"](self.conn, self.tenant_id, job)
        return dataclasses.replace(world, canceled=world.canceled | {job})

    # What must hold after every step.

    def _check(self, before: Mapping[UUID, Row], rows: Rows, world: World) -> None:
        for job, row in rows:
            state, epoch, attempt, _, most, keys, result = row
            if before[job][0] in TERMINAL and before[job] != row:
                raise self._violation("what had ended was changed")
            if attempt > most:
                raise self._violation(f"{attempt} attempts of {most}")
            if (state is State.SUCCEEDED) != (len(keys) == 1):
                raise self._violation(f"{state} with artifacts {keys}")
            if state is State.SUCCEEDED and not (f"/{job}/{epoch}/" in keys[0] and result == epoch):
                raise self._violation(f"published {keys} in epoch {epoch}")
            if (state in HELD) != (Hold(job, epoch) in world.holds):
                raise self._violation(f"{state} in epoch {epoch} while {set(world.holds)} hold")

    def _rows(self) -> Rows:
        jobs, artifacts = tables.jobs, tables.artifacts
        keys = sa.select(artifacts.c.object_key).where(artifacts.c.job_id == jobs.c.id)
        statement = sa.select(
            jobs.c.id,
            jobs.c.state,
            jobs.c.epoch,
            jobs.c.attempt,
            sa.func.coalesce(jobs.c.lease_expires_at < sa.func.now(), sa.false()),
            jobs.c.max_attempts,
            sa.func.array(keys.scalar_subquery()),
            jobs.c.result["epoch"].as_integer(),
        ).order_by(jobs.c.id)
        return tuple(
            (job, (State(state), epoch, attempt, lapsed, most, tuple(published), result))
            for job, state, epoch, attempt, lapsed, most, published, result in self.conn.execute(statement)
        )

    def _violation(self, what: str) -> ViolationError:
        return ViolationError(what, self._path)
