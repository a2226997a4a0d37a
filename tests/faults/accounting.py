"""The account that every fault must settle: each submitted job ends exactly once, with exactly one published result.

Handlers write down each beginning in a file of their job (see `fault_handlers`), so that the account also says how
often a job's work was begun, which no row does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import queue, tables
from calotype.artifacts import ObjectStore, job_prefix
from calotype.database import transaction
from calotype.errors import DependencyDown
from calotype.jobs import TERMINAL, Artifact, Job, State
from worker import orphans

#: Older than objects that are yet to be made.
AT_ONCE = -60.0


@dataclasses.dataclass(frozen=True)
class Begun:
    """One start of a handler."""

    epoch: int
    pid: int


@dataclasses.dataclass(frozen=True)
class Accounts:
    """The books of one database, one bucket and one folder of beginnings."""

    engine: Engine
    store: ObjectStore
    #: One file a job, one line a beginning.
    beginnings: Path

    def jobs(self) -> dict[UUID, Job]:
        """Every job there is."""
        with transaction(self.engine) as conn:
            rows = conn.execute(sa.select(tables.jobs)).mappings().all()
        return {row["id"]: Job.from_row(row) for row in rows}

    def begun(self, job_id: UUID) -> list[Begun]:
        """The beginnings of a job, in their order."""
        try:
            lines = (self.beginnings / str(job_id)).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [Begun(**json.loads(line)) for line in lines]

    def wait(self, ids: Collection[UUID], timeout: float = 60.0) -> None:
        """Until all of `ids` have ended; an outage of Postgres is waited out."""
        deadline = time.monotonic() + timeout
        while left := self.open_jobs(ids):
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(left)} of {len(ids)} jobs have not ended: {left[:5]}")
            time.sleep(0.05)

    def settle(
        self,
        ids: Collection[UUID],
        *,
        states: Collection[State] = (State.SUCCEEDED,),
        attempts: int | range | Mapping[UUID, int] = 1,
        reruns: int = 0,
        splits: int = 0,
        timeout: float = 60.0,
    ) -> dict[UUID, Job]:
        """Wait for the jobs and go through the whole account; gives the jobs.

        `states` are the ends that the fault allows, `attempts` how many claims may have been charged to a job, `reruns`
        how often the work of a job may have been begun beyond once, `splits` how often that within one claim.

        Raises AssertionError with the entry that is wrong.
        """
        self.wait(ids, timeout)
        jobs = self.jobs()
        assert set(jobs) == set(ids), f"lost: {set(ids) - set(jobs)}, out of nowhere: {set(jobs) - set(ids)}"
        for job in jobs.values():
            assert job.state in states, f"{job.id} ended {job.state}: {job.error}"
            assert job.attempt in _expected(attempts, job), f"{job.id} was charged {job.attempt} attempts"
            assert job.worker_id is None or job.epoch > 0
            assert job.lease_expires_at is None
            assert job.checkpoint is None
        self.check_results(jobs)
        self._check_beginnings(jobs, reruns, splits)
        self._check_store()
        self._check_books(jobs)
        return jobs

    def check_results(self, jobs: Mapping[UUID, Job]) -> None:
        """What succeeded has the artifacts of one epoch, all of them in the store; nothing else has any."""
        with transaction(self.engine) as conn:
            published = queue.artifacts_of(conn, list(jobs))
            rows = conn.scalar(sa.select(sa.func.count()).select_from(tables.artifacts))
        assert rows == sum(len(artifacts) for artifacts in published.values()), "artifacts of no job"
        for job in jobs.values():
            artifacts = published.get(job.id, [])
            if job.state is not State.SUCCEEDED:
                assert artifacts == [], f"{job.id} ended {job.state} and published {artifacts}"
                continue
            assert job.result is not None
            # One that was answered from an equal job has that one's images.
            maker = jobs[UUID(job.result["cached_from"])] if "cached_from" in job.result else job
            assert (maker.state, maker.tenant_id) == (State.SUCCEEDED, job.tenant_id)
            assert [artifact.name for artifact in artifacts] == job.result["names"], f"{job.id}: {artifacts}"
            assert job.result["epoch"] == maker.epoch, f"{job.id} has the result of epoch {job.result['epoch']}"
            for artifact in artifacts:
                self._check_artifact(maker, artifact)

    def _check_artifact(self, job: Job, artifact: Artifact) -> None:
        assert artifact.object_key == job_prefix(job.tenant_id, job.id, job.epoch) + artifact.name
        stored = self.store.get_bytes(artifact.object_key)
        assert (len(stored), hashlib.sha256(stored).hexdigest()) == (artifact.bytes, artifact.sha256), artifact
        # The handler signs what it makes: these are the bytes of this job's own run in this epoch.
        assert json.loads(stored.splitlines()[-1]) == {"job": str(job.id), "epoch": job.epoch}

    def _check_beginnings(self, jobs: Mapping[UUID, Job], reruns: int, splits: int) -> None:
        known = {path.name for path in self.beginnings.iterdir()}
        assert known <= {str(job_id) for job_id in jobs}, "something ran that was never submitted"
        for job in jobs.values():
            begun = self.begun(job.id)
            epochs = [one.epoch for one in begun]
            assert max(Counter(epochs).values(), default=0) <= 1 + splits, f"{job.id}: twice in one epoch: {begun}"
            assert all(1 <= epoch <= job.epoch for epoch in epochs), f"{job.id}: {begun}, epoch {job.epoch}"
            assert len(set(epochs)) <= 1 + reruns, f"{job.id} was begun {len(begun)} times: {begun}"
            if job.state is State.SUCCEEDED and "cached_from" not in (job.result or {}):
                assert job.result is not None
                assert Begun(job.epoch, job.result["pid"]) in begun, f"{job.id} has a result that nobody made"

    def _check_store(self) -> None:
        """After the orphans are collected exactly what rows refer to is left: nothing less, nothing more."""
        orphans.collect(self.engine, self.store, AT_ONCE)
        with transaction(self.engine) as conn:
            referenced = set(conn.scalars(sa.select(tables.artifacts.c.object_key)))
        stored = {item.key for item in self.store.list_keys("tenants/") if orphans.JOB_OBJECT.fullmatch(item.key)}
        assert stored == referenced, f"missing: {referenced - stored}, left over: {stored - referenced}"

    def _check_books(self, jobs: Mapping[UUID, Job]) -> None:
        """Each end was told and counted once, and no tenant is still charged with a running job."""
        events, ends = tables.events, [str(state) for state in TERMINAL]
        told = sa.select(events.c.job_id).where(events.c.type == "state", events.c.data["state"].astext.in_(ends))
        with transaction(self.engine) as conn:
            assert sorted(conn.scalars(told)) == sorted(jobs)
            assert conn.scalar(sa.select(sa.func.sum(tables.usage.c.jobs))) == len(jobs)
            assert conn.scalar(sa.select(sa.func.coalesce(sa.func.sum(tables.shares.c.running), 0))) == 0

    def open_jobs(self, ids: Collection[UUID]) -> list[UUID]:
        """Those that have not ended; all of them while Postgres is away."""
        ended = sa.and_(tables.jobs.c.id.in_(ids), tables.jobs.c.state.in_([str(state) for state in TERMINAL]))
        try:
            with transaction(self.engine) as conn:
                found = set(conn.scalars(sa.select(tables.jobs.c.id).where(ended)))
        except DependencyDown:
            return list(ids)
        return [job_id for job_id in ids if job_id not in found]


def _expected(attempts: int | range | Mapping[UUID, int], job: Job) -> Collection[int]:
    if isinstance(attempts, range):
        return attempts
    return (attempts if isinstance(attempts, int) else attempts.get(job.id, 1),)
