"""Equal jobs at random: whoever runs, fails, is canceled or deleted, nobody waits for ever and no image goes missing.

A model of who leads whom would repeat the queue's own rules, so this machine only knows what must never be.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)
from sqlalchemy import Engine

from calotype import queue, tables, workers
from calotype.artifacts import Artifact, job_prefix
from calotype.database import transaction
from calotype.errors import CancelRequested, Conflict, LeaseLost
from calotype.ids import new_id
from calotype.jobs import TERMINAL, Family, JobError, Kind, State
from calotype.tenants import Tenant
from tests.faults.machines import DatabaseMachine, run_machine

QUEUE = "diffusion.generate"
LEASE = 600.0
PAST = sa.text("now() - interval '1 s'")
jobs, artifacts = tables.jobs, tables.artifacts


class Sharing(DatabaseMachine):
    """Jobs of two kinds of images, each with two seeds, in every mode of the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[UUID] = []
        self.tokens: list[tuple[UUID, int]] = []
        self.final: dict[UUID, Any] = {}

    @initialize()
    def clear(self) -> None:
        info = workers.WorkerInfo(
            id=new_id(), name="A", hostname="host", pid=1, queues=(QUEUE,), device={"kind": "cpu"}, version="test"
        )
        with transaction(self.engine) as conn:
            for table in (jobs, tables.shares, tables.usage, tables.tenant_queues):
                conn.execute(table.delete())
            self.worker = workers.register(conn, info).id

    @rule(
        image=st.sampled_from("ab"),
        seed=st.sampled_from("12"),
        mode=st.sampled_from(["use", "use", "any_seed", "bypass"]),
        most=st.integers(1, 2),
    )
    def submit(self, image: str, seed: str, mode: Any, most: int) -> None:
        new = queue.NewJob(
            tenant_id=self.tenant.id,
            kind=Kind.GENERATE,
            family=Family.DIFFUSION,
            model="small-model@1",
            spec={"kind": "generate", "cache": mode, "input": {"prompt": image, "seed": seed}},
            max_attempts=most,
            cache_key=image + seed,
            any_seed_key=image,
            cache=mode,
        )
        with transaction(self.engine) as conn:
            self.ids.append(queue.submit(conn, new).id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "delete"]))
    def a_user_asks(self, data: st.DataObject, what: str) -> None:
        job_id = data.draw(st.sampled_from(self.ids))
        if what == "delete":
            self._delete(job_id)
            return
        with transaction(self.engine) as conn:
            queue.cancel(conn, self.tenant.id, job_id)

    def _delete(self, job_id: UUID) -> None:
        try:
            with transaction(self.engine) as conn:
                keys = queue.delete(conn, self.tenant.id, job_id)
        except Conflict:
            return
        self.ids.remove(job_id)
        self.final.pop(job_id, None)
        with transaction(self.engine) as conn:
            # Its objects are about to be removed from the store.
            assert conn.scalars(sa.select(artifacts.c.job_id).where(artifacts.c.object_key.in_(keys))).all() == []

    @rule()
    def claim(self) -> None:
        with transaction(self.engine) as conn:
            job = queue.claim(conn, self.worker, [QUEUE], LEASE)
        if job is not None:
            self.tokens.append((job.id, job.epoch))

    @precondition(lambda self: self.tokens)
    @rule(data=st.data(), what=st.sampled_from(["finish", "finish", "fail", "put off", "release", "acknowledge"]))
    def last_word(self, data: st.DataObject, what: str) -> None:
        """Of a worker, in force or stale."""
        job_id, epoch = data.draw(st.sampled_from(self.tokens[-5:]))
        try:
            self._say(what, job_id, epoch)
        except (LeaseLost, CancelRequested, Conflict):
            return

    def _say(self, what: str, job_id: UUID, epoch: int) -> None:
        with transaction(self.engine) as conn:
            if what == "finish":
                queue.finish(conn, job_id, epoch, self._outcome(job_id, epoch))
            elif what == "fail":
                queue.fail(conn, job_id, epoch, AWAY)
            elif what == "put off":
                queue.fail(conn, job_id, epoch, AWAY, 3600.0)
            elif what == "release":
                queue.release(conn, job_id, epoch)
            else:
                queue.acknowledge_cancel(conn, job_id, epoch)

    def _outcome(self, job_id: UUID, epoch: int) -> queue.Outcome:
        key = f"{job_prefix(self.tenant.id, job_id, epoch)}image-0.png"
        image = Artifact(name="image-0.png", object_key=key, content_type="image/png", bytes=1, sha256="a" * 64)
        return queue.Outcome(result={"epoch": epoch}, artifacts=[image])

    @rule(what=st.sampled_from(["leases", "backoffs"]))
    def time_passes(self, what: str) -> None:
        self._reap_all() if what == "leases" else self._end_backoffs()

    def _reap_all(self) -> None:
        with transaction(self.engine) as conn:
            conn.execute(jobs.update().where(jobs.c.lease_expires_at.is_not(None)).values(lease_expires_at=PAST))
            queue.reap(conn)

    def _end_backoffs(self) -> None:
        with transaction(self.engine) as conn:
            conn.execute(jobs.update().where(jobs.c.state == State.QUEUED).values(available_at=PAST))

    def teardown(self) -> None:
        """Whatever happened, one worker that does its work brings everything to an end."""
        if not hasattr(self, "worker"):
            return
        for _ in range(3 * len(self.ids) + 3):
            self._reap_all()
            self._end_backoffs()
            with transaction(self.engine) as conn:
                job = queue.claim(conn, self.worker, [QUEUE], LEASE)
            if job is None:
                break
            self._say("finish", job.id, job.epoch)
            self.followers_wait_for_somebody()
            self.ends_are_final_and_have_their_images()
        with transaction(self.engine) as conn:
            left = conn.execute(sa.select(jobs.c.id, jobs.c.state).where(jobs.c.finished_at.is_(None))).all()
            assert left == [], "jobs that nobody will ever end"
            assert conn.scalar(sa.select(sa.func.coalesce(sa.func.sum(tables.shares.c.running), 0))) == 0

    @invariant()
    def followers_wait_for_somebody(self) -> None:
        leader = jobs.alias()
        statement = sa.select(jobs, leader.c.state.label("leads"), leader.c.leader_id.label("follows"))
        statement = statement.join(leader, leader.c.id == jobs.c.leader_id)
        with transaction(self.engine) as conn:
            pairs = conn.execute(statement).mappings().all()
            found = conn.execute(sa.select(jobs.c.id).where(jobs.c.leader_id.is_not(None))).all()
        assert len(pairs) == len(found), "it waits for a job that is gone"
        for pair in pairs:
            assert pair["state"] == State.QUEUED
            assert State(pair["leads"]) not in TERMINAL, "it waits for a job that has ended"
            assert pair["follows"] is None, "it waits for one that waits"

    @invariant()
    def ends_are_final_and_have_their_images(self) -> None:
        with transaction(self.engine) as conn:
            rows = {row["id"]: row for row in conn.execute(sa.select(jobs)).mappings()}
            published = queue.artifacts_of(conn, list(rows))
        assert set(rows) == set(self.ids)
        for job_id, row in rows.items():
            keys = [artifact.object_key for artifact in published.get(job_id, ())]
            assert len(keys) == (row["state"] == State.SUCCEEDED), f"{row['state']} with {keys}"
            if State(row["state"]) not in TERMINAL:
                continue
            if keys and "cached_from" not in row["result"]:
                assert f"/{row['result']['epoch']}/" in keys[0]
            final = {name: value for name, value in row.items() if name != "retried_from"}
            assert self.final.setdefault(job_id, final) == final, "what had ended was changed"


AWAY = JobError(code="dependency_down", title="Away", detail="Away.", retryable=True)


def test_equal_jobs_all_end_whatever_befalls_the_one_that_runs_for_them(engine: Engine, tenant: Tenant) -> None:
    run_machine(Sharing, engine, tenant, runs=50, steps=30)
