"""A job's life at random: the real queue on a real Postgres against a model in Python, by Hypothesis."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    rule,
)
from sqlalchemy import Engine

from calotype import queue, tables, workers
from calotype.artifacts import Artifact, job_prefix
from calotype.database import transaction
from calotype.errors import CancelRequested, Conflict, LeaseLost, NotFound
from calotype.ids import new_id
from calotype.jobs import HELD, TERMINAL, Family, Job, JobError, Kind, Progress, State
from calotype.tenants import Tenant
from tests.faults.machines import DatabaseMachine, run_machine

QUEUE = "diffusion.generate"
LEASE = 600.0
PAST = sa.text("now() - interval '1 s'")


@dataclasses.dataclass
class Expected:
    """What the model knows of a job."""

    id: UUID
    most: int
    state: State = State.QUEUED
    epoch: int = 0
    attempt: int = 0
    lapsed: bool = False
    #: It waits out a backoff.
    waits: bool = False
    #: Its deadline has passed; that matters until its first start.
    late: bool = False
    has_deadline: bool = False
    started: bool = False
    keys: tuple[str, ...] = ()
    checkpoint: int | None = None
    error: str | None = None
    retried_from: UUID | None = None
    #: The row as it was when the job had just ended.
    final: Any = None

    @property
    def runnable(self) -> bool:
        return self.state is State.QUEUED and not self.waits and (self.started or not self.late)

    def end(self, state: State, error: str | None = None) -> None:
        self.state, self.error, self.checkpoint, self.lapsed = state, error, None, False

    def requeue(self, *, charge: bool) -> None:
        self.state, self.lapsed = State.QUEUED, False
        self.attempt -= 0 if charge else 1


Token = tuple[UUID, int]
Action = Callable[[st.DataObject], None]


class JobLife(DatabaseMachine):
    """Two workers, users and a reconciler in any order. A token is a claim, and is used long after it is stale."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[UUID, Expected] = {}
        self.gone: list[UUID] = []
        self.tokens: list[Token] = []

    @initialize()
    def clear(self) -> None:
        with transaction(self.engine) as conn:
            for table in (tables.jobs, tables.shares, tables.usage, tables.tenant_queues):
                conn.execute(table.delete())
            self.crew = [workers.register(conn, _info(name)).id for name in ("A", "B")]

    # One rule, since many would leave it to chance whether a claim ever meets a job, and a stale one a new holder.
    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(self._possible()))
        what(data)

    def _possible(self) -> list[Action]:
        """What may happen now, the more promising more often."""
        states = {job.state for job in self.jobs.values()}
        possible: list[tuple[bool, int, Action]] = [
            (len(self.jobs) < 6, 3, self._submit),
            (True, 4 if any(job.runnable for job in self.jobs.values()) else 1, self._claim),
            (bool(self.tokens), 3, self._write),
            (bool(self.tokens), 3, self._finish),
            (bool(self.tokens), 3, self._fail),
            (bool(self.tokens), 2, self._release),
            (bool(self.tokens), 3 if State.CANCELING in states else 1, self._acknowledge_cancel),
            (bool(self.jobs), 2, self._cancel),
            (bool(self.jobs), 1, self._retry),
            (bool(self.jobs), 1, self._delete),
            (bool(self.gone), 1, self._ask_for_what_is_gone),
            (bool(self.jobs), 3, self._time_passes),
            (True, 8 if any(job.lapsed for job in self.jobs.values()) else 1, self._reap),
            (True, 1, self._expire),
            (True, 1, self._tidy),
        ]
        return [action for may, weight, action in possible if may for _ in range(weight)]

    def _claim(self, data: st.DataObject) -> None:
        worker, most_units = data.draw(st.integers(0, 1)), data.draw(st.sampled_from([1, 4, 8]))
        runnable = {job.id for job in self.jobs.values() if job.runnable}
        claimant = queue.Claimant(
            worker_id=self.crew[worker], queues=[QUEUE], lease_seconds=LEASE, most_units=most_units
        )
        with transaction(self.engine) as conn:
            claimed = queue.claim_batch(conn, claimant).jobs
        assert (not claimed) == (not runnable), "work was left, or made up"
        assert {job.id for job in claimed} <= runnable
        if len(claimed) > 1:
            assert len({job.batch_key for job in claimed} | {None}) == 2
            assert sum(job.units for job in claimed) <= min(most_units, 6)
            # What crashed or failed before runs alone.
            assert {job.attempt for job in claimed} == {1}
        for taken in claimed:
            job = self.jobs[taken.id]
            job.state, job.started, job.lapsed = State.RUNNING, True, False
            job.epoch += 1
            job.attempt += 1
            self.tokens.append((job.id, job.epoch))

    def _submit(self, data: st.DataObject) -> None:
        most, units, has_deadline = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3)), data.draw(st.booleans())
        new = queue.NewJob(
            tenant_id=self.tenant.id,
            kind=Kind.GENERATE,
            family=Family.DIFFUSION,
            model="small-model@1",
            spec={"kind": "generate", "input": {"prompt": "a logo"}},
            priority=data.draw(st.integers(0, 9)),
            max_attempts=most,
            deadline_seconds=3600.0 if has_deadline else None,
            batch_key=data.draw(st.sampled_from([None, "alike", "alike"])),
            units=units,
            batch_limit=6,
        )
        with transaction(self.engine) as conn:
            job = queue.submit(conn, new)
        self.jobs[job.id] = Expected(job.id, most, has_deadline=has_deadline)

    def _cancel(self, data: st.DataObject) -> None:
        job = self._any(data)
        with transaction(self.engine) as conn:
            canceled = queue.cancel(conn, self.tenant.id, job.id)
        if job.state is State.QUEUED:
            job.end(State.CANCELED)
        elif job.state is State.RUNNING:
            job.state = State.CANCELING
        assert canceled.state is job.state

    def _retry(self, data: st.DataObject) -> None:
        job = self._any(data)
        if job.state not in TERMINAL:
            self._refused(Conflict, lambda conn: queue.retry(conn, self.tenant.id, job.id))
            return
        with transaction(self.engine) as conn:
            again = queue.retry(conn, self.tenant.id, job.id)
        open_retries = [one for one in self.jobs.values() if one.retried_from == job.id and one.state not in TERMINAL]
        if open_retries:
            assert again.id in {one.id for one in open_retries}
            return
        assert (again.id in self.jobs, again.retried_from, again.attempt, again.epoch) == (False, job.id, 0, 0)
        self.jobs[again.id] = Expected(again.id, job.most, has_deadline=job.has_deadline, retried_from=job.id)

    def _delete(self, data: st.DataObject) -> None:
        job = self._any(data)
        if job.state not in TERMINAL:
            self._refused(Conflict, lambda conn: queue.delete(conn, self.tenant.id, job.id))
            return
        with transaction(self.engine) as conn:
            assert tuple(queue.delete(conn, self.tenant.id, job.id)) == job.keys
        del self.jobs[job.id]
        self.gone.append(job.id)
        for child in self.jobs.values():
            if child.retried_from == job.id:
                child.retried_from = None

    def _ask_for_what_is_gone(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.gone))
        for move in (queue.cancel, queue.retry, queue.delete):
            self._refused(NotFound, lambda conn, move=move: move(conn, self.tenant.id, job_id))

    def _write(self, data: st.DataObject) -> None:
        what = data.draw(st.sampled_from(["heartbeat", "look", "progress", "checkpoint"]))
        (job_id, epoch), job = self._token(data)
        moves: dict[str, Callable[[sa.Connection], State]] = {
            "heartbeat": lambda conn: queue.heartbeat(conn, job_id, epoch, LEASE),
            "look": lambda conn: queue.look(conn, job_id, epoch),
            "progress": lambda conn: queue.progress(conn, job_id, epoch, HALF),
            "checkpoint": lambda conn: queue.checkpoint(conn, job_id, epoch, _record(epoch)),
        }
        if job is None:
            self._refused(LeaseLost, moves[what])
            return
        with transaction(self.engine) as conn:
            assert moves[what](conn) is job.state
        if what == "heartbeat":
            job.lapsed = False
        if what == "checkpoint":
            job.checkpoint = epoch

    def _finish(self, data: st.DataObject) -> None:
        (job_id, epoch), job = self._token(data)
        key = f"{job_prefix(self.tenant.id, job_id, epoch)}image-0.png"
        image = Artifact(name="image-0.png", object_key=key, content_type="image/png", bytes=1, sha256="a" * 64)
        outcome = queue.Outcome(result={"epoch": epoch}, artifacts=[image])
        if job is None or job.state is State.CANCELING:
            refusal = LeaseLost if job is None else CancelRequested
            self._refused(refusal, lambda conn: queue.finish(conn, job_id, epoch, outcome))
            return
        with transaction(self.engine) as conn:
            queue.finish(conn, job_id, epoch, outcome)
        job.end(State.SUCCEEDED)
        job.keys = (key,)

    def _fail(self, data: st.DataObject) -> None:
        retryable, again = data.draw(st.booleans()), data.draw(st.booleans())
        (job_id, epoch), job = self._token(data)
        error = JobError(code="dependency_down", title="Away", detail="Away.", retryable=retryable)
        wait = 3600.0 if again else None
        if job is None:
            self._refused(LeaseLost, lambda conn: queue.fail(conn, job_id, epoch, error, wait))
            return
        with transaction(self.engine) as conn:
            queue.fail(conn, job_id, epoch, error, wait)
        if job.state is State.CANCELING:
            job.end(State.CANCELED)
        elif retryable and again and job.attempt < job.most:
            job.requeue(charge=True)
            job.waits = True
        else:
            job.end(State.FAILED, "dependency_down")

    def _release(self, data: st.DataObject) -> None:
        (job_id, epoch), job = self._token(data)
        if job is None:
            self._refused(LeaseLost, lambda conn: queue.release(conn, job_id, epoch))
            return
        with transaction(self.engine) as conn:
            queue.release(conn, job_id, epoch)
        if job.state is State.CANCELING:
            job.end(State.CANCELED)
        else:
            job.requeue(charge=False)

    def _acknowledge_cancel(self, data: st.DataObject) -> None:
        (job_id, epoch), job = self._token(data)
        if job is None or job.state is State.RUNNING:
            refusal = LeaseLost if job is None else Conflict
            self._refused(refusal, lambda conn: queue.acknowledge_cancel(conn, job_id, epoch))
            return
        with transaction(self.engine) as conn:
            queue.acknowledge_cancel(conn, job_id, epoch)
        job.end(State.CANCELED)

    def _time_passes(self, data: st.DataObject) -> None:
        job = self._any(data)
        if job.state in HELD:
            job.lapsed = True
            self._set(job, lease_expires_at=PAST)
        elif job.state is State.QUEUED and job.waits:
            job.waits = False
            self._set(job, available_at=PAST)
        elif job.state is State.QUEUED and job.has_deadline:
            job.late = True
            # Both, since a retry is given as much time as this one had.
            self._set(job, **{name: tables.jobs.c[name] - timedelta(hours=2) for name in ("created_at", "expires_at")})

    def _reap(self, _: st.DataObject) -> None:
        with transaction(self.engine) as conn:
            reaped = {job.id for job in queue.reap(conn)}
        lapsed = [job for job in self.jobs.values() if job.lapsed]
        assert reaped == {job.id for job in lapsed}
        for job in lapsed:
            if job.state is State.CANCELING:
                job.end(State.CANCELED)
            elif job.attempt < job.most:
                job.requeue(charge=True)
            else:
                job.end(State.FAILED, "worker_lost")

    def _tidy(self, _: st.DataObject) -> None:
        with transaction(self.engine) as conn:
            queue.tidy(conn)

    def _expire(self, _: st.DataObject) -> None:
        with transaction(self.engine) as conn:
            expired = {job.id for job in queue.expire(conn)}
        late = [job for job in self.jobs.values() if job.state is State.QUEUED and job.late and not job.started]
        assert expired == {job.id for job in late}
        for job in late:
            job.end(State.EXPIRED, "deadline_passed")

    # What holds after every step.

    @invariant()
    def the_rows_are_as_the_model_says(self) -> None:
        with transaction(self.engine) as conn:
            rows = {row["id"]: row for row in conn.execute(sa.select(tables.jobs)).mappings()}
            published = queue.artifacts_of(conn, list(rows))
        assert set(rows) == set(self.jobs)
        for job in self.jobs.values():
            row, found = rows[job.id], Job.from_row(rows[job.id])
            seen = (found.state, found.epoch, found.attempt, found.error and found.error.code, found.retried_from)
            assert seen == (job.state, job.epoch, job.attempt, job.error, job.retried_from)
            assert 0 <= found.attempt <= found.max_attempts
            assert tuple(artifact.object_key for artifact in published.get(job.id, ())) == job.keys
            assert (found.checkpoint and found.checkpoint["epoch"]) == job.checkpoint
            assert found.result == ({"epoch": job.epoch} if job.state is State.SUCCEEDED else None)
            if job.state in TERMINAL:
                # All of the row but what a deletion elsewhere clears.
                whole = {name: value for name, value in row.items() if name != "retried_from"}
                job.final = job.final or whole
                assert whole == job.final, "what had ended was changed"

    @invariant()
    def the_books_are_right(self) -> None:
        held = sum(job.state in HELD for job in self.jobs.values())
        ended = sum(job.state in TERMINAL for job in self.jobs.values()) + len(self.gone)
        events, jobs = tables.events, tables.jobs
        told = sa.select(jobs.c.id, jobs.c.event_seq, sa.func.count(), sa.func.max(events.c.seq))
        told = told.join(events, events.c.job_id == jobs.c.id).group_by(jobs.c.id)
        with transaction(self.engine) as conn:
            assert conn.scalar(sa.select(sa.func.coalesce(sa.func.sum(tables.shares.c.running), 0))) == held
            assert conn.scalar(sa.select(sa.func.coalesce(sa.func.sum(tables.usage.c.jobs), 0))) == ended
            for job_id, latest, count, highest in conn.execute(told):
                assert latest == count == highest, f"{job_id} has gaps in its events"

    def _any(self, data: st.DataObject) -> Expected:
        return self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]

    def _token(self, data: st.DataObject) -> tuple[Token, Expected | None]:
        """One of the latest claims, and its job if the claim is in force."""
        token = data.draw(st.sampled_from(self.tokens[-6:]))
        job = self.jobs.get(token[0])
        return token, job if job is not None and job.state in HELD and job.epoch == token[1] else None

    def _refused(self, error: type[Exception], move: Callable[[sa.Connection], Any]) -> None:
        with pytest.raises(error), transaction(self.engine) as conn:
            move(conn)

    def _set(self, job: Expected, **values: Any) -> None:
        with transaction(self.engine) as conn:
            conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(**values))


HALF = Progress(fraction=0.5, step=1, total=2, stage="working")


def _record(epoch: int) -> dict[str, Any]:
    return {"step": 1, "epoch": epoch, "directory": False, "objects": []}


def _info(name: str) -> workers.WorkerInfo:
    return workers.WorkerInfo(
        id=new_id(), name=name, hostname="host", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="test"
    )


def test_whatever_happens_to_jobs_in_whatever_order_the_rows_are_as_the_model_says(
    engine: Engine, tenant: Tenant
) -> None:
    run_machine(JobLife, engine, tenant, runs=60, steps=50)
