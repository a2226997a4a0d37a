"""Everything at once: equal and unequal jobs submitted, run, failed, canceled, deleted and expired by many threads.

What must hold at the end, whatever the order was: each job ended once, each image that is shown is there and is the one
that was asked for, and nothing is left in the store that no job shows.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import lookup, queue, retention, tables
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import transaction
from calotype.errors import CancelRequested, Conflict, Invalid, LeaseLost, LimitExceeded, NotFound
from calotype.init_images import check_init_image
from calotype.jobs import Family, Job, JobError, Kind, State
from calotype.tenants import Tenant
from worker import orphans

QUEUES = ("diffusion.generate",)
BROKEN = JobError(code="dependency_down", title="Dependency down", detail="away", retryable=True)
WRONG = JobError(code="bad_input", title="Bad input", detail="wrong", retryable=False)
#: Older than objects that are yet to be made: no margin.
AT_ONCE = -60.0
ROUNDS = 80


class World:
    """What the threads do to the queue, each a transaction of its own, as the processes of the product do."""

    def __init__(self, engine: Engine, store: ObjectStore, tenants: list[Tenant], seed: int) -> None:
        self.engine, self.store, self.tenants, self.seed = engine, store, tenants, seed
        self.lock = threading.Lock()
        self.submitted: list[Job] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def do(self, action: Callable[..., Any], *arguments: Any) -> Any:
        with transaction(self.engine) as conn:
            return action(conn, *arguments)

    def count(self, word: str) -> None:
        with self.lock:
            self.counts[word] += 1

    def some_job(self, dice: random.Random) -> Job | None:
        with self.lock:
            return dice.choice(self.submitted[-40:]) if self.submitted else None

    def submit(self, dice: random.Random) -> None:
        tenant, prompt, seed = dice.choice(self.tenants), dice.choice("ab"), dice.randrange(4)
        spec: dict[str, Any] = {"kind": "generate", "input": {"prompt": prompt, "seed": seed}}
        spec["cache"] = dice.choice(("use", "use", "any_seed", "bypass"))
        source = self.some_job(dice) if dice.random() < 0.15 else None
        if source is not None:
            tenant = next(one for one in self.tenants if one.id == source.tenant_id)
            spec["input"] |= {"init_image": f"{source.id}/image.png", "prompt": f"from {source.id}"}
        values: dict[str, Any] = {} if spec["cache"] == "bypass" else self.keys(spec)
        new = queue.NewJob(
            tenant_id=tenant.id,
            kind=Kind.GENERATE,
            family=Family.DIFFUSION,
            model="m@1",
            spec=spec,
            priority=dice.randrange(10),
            max_attempts=dice.choice((1, 3)),
            deadline_seconds=dice.choice((None, None, 0.05, 60.0)),
            retain_seconds=dice.choice((None, 0.01, 0.2)),
            cache=spec["cache"],
            **values,
        )
        try:
            with transaction(self.engine) as conn:
                if source is not None:
                    check_init_image(conn, tenant.id, spec["input"]["init_image"])
                job = queue.submit(conn, new)
        except (Invalid, LimitExceeded):
            return
        self.note(job)
        if job.state is State.SUCCEEDED:
            with contextlib.suppress(NotFound):
                self.look(job, dice)

    @staticmethod
    def keys(spec: dict[str, Any]) -> dict[str, str]:
        prompt = spec["input"]["prompt"]
        return {"cache_key": f"{prompt} {spec['input']['seed']}", "any_seed_key": prompt}

    def note(self, job: Job) -> None:
        with self.lock:
            self.submitted.append(job)
            self.counts["hit"] += job.state is State.SUCCEEDED
            self.counts["follower"] += job.leader_id is not None

    def work(self, dice: random.Random, worker: UUID, *, well: bool = False) -> bool:
        job: Job | None = self.do(queue.claim, worker, QUEUES, 60.0)
        if job is None:
            return False
        self.check_init_image(job)
        # Time for others to join it.
        time.sleep(dice.random() * 0.1)
        fates = ("finish", "finish", "finish", "canceled", "canceled", "put_off", "fail", "release", "lost")
        self.bring_on(job, "finish" if well else dice.choice(fates), dice)
        return True

    def bring_on(self, job: Job, fate: str, dice: random.Random) -> None:
        try:
            if fate == "lost":
                self.change(job, lease_expires_at=sa.func.clock_timestamp() - timedelta(seconds=1))
                self.do(queue.reap)
            if fate == "canceled":
                self.cancel(job, dice)
            if fate in {"finish", "lost", "canceled"}:
                self.finish(job)
            elif fate == "put_off":
                self.do(queue.fail, job.id, job.epoch, BROKEN, dice.choice((0.0, 0.1)))
            elif fate == "fail":
                self.do(queue.fail, job.id, job.epoch, WRONG)
            else:
                self.do(queue.release, job.id, job.epoch)
        except LeaseLost:
            self.count("lease lost")

    def check_init_image(self, job: Job) -> None:
        """What a job starts from is there as long as it runs."""
        source = job.spec["input"].get("init_image", "").partition("/")[0]
        if source:
            shown = self.do(lookup.artifacts_of, [UUID(source)]).get(UUID(source), [])
            if not shown:
                self.wrong.append(f"{job.id} starts from an image of {source}, which is gone")
            for artifact in shown:
                self.store.stat(artifact.object_key)

    def finish(self, job: Job) -> None:
        key = job_prefix(job.tenant_id, job.id, job.epoch) + "image.png"
        given = job.spec["input"]
        self.store.put_bytes(key, f"{job.tenant_id} {given['prompt']} {given['seed']}".encode())
        image = Artifact(name="image.png", object_key=key, content_type="image/png", bytes=1, sha256="0" * 64)
        try:
            ended = self.do(queue.finish, job.id, job.epoch, queue.Outcome(result={}, artifacts=[image]))
        except CancelRequested:
            self.do(queue.acknowledge_cancel, job.id, job.epoch)
        else:
            self.count("handed over" if ended.state is State.CANCELED else "made")

    def change(self, job: Job, **values: Any) -> None:
        mine = sa.and_(tables.jobs.c.id == job.id, tables.jobs.c.state.in_(["running", "canceling"]))
        self.do(lambda conn: conn.execute(tables.jobs.update().where(mine).values(**values)))

    def meddle(self, dice: random.Random) -> None:
        job = self.some_job(dice)
        if job is None:
            return
        try:
            deed = dice.choice((self.cancel, self.cancel, self.retry, self.delete, self.delete, self.look))
            deed(job, dice)
        except (NotFound, Conflict, LimitExceeded):
            pass

    def look(self, job: Job, dice: random.Random) -> None:
        """What a job shows is there at every moment, not only at the end, and is what was asked for."""
        with transaction(self.engine) as conn:
            lookup.get(conn, job.tenant_id, job.id, hold=True)
            for artifact in lookup.artifacts_of(conn, [job.id]).get(job.id, []):
                check_image(self, job, artifact)
                self.count("looked")

    def cancel(self, job: Job, dice: random.Random) -> None:
        self.do(queue.cancel, job.tenant_id, job.id)

    def retry(self, job: Job, dice: random.Random) -> None:
        again = self.do(queue.retry, job.tenant_id, job.id)
        with self.lock:
            if again.id in {one.id for one in self.submitted}:
                return
        self.note(again)

    def delete(self, job: Job, dice: random.Random) -> None:
        keys = self.do(queue.delete, job.tenant_id, job.id)
        # Now and then the process dies before it gets to that.
        if dice.random() < 0.7:
            self.store.discard(keys)

    def reconcile(self, dice: random.Random) -> None:
        self.do(queue.reap)
        self.do(queue.expire)
        self.do(queue.tidy)
        if dice.random() < 0.5:
            retention.sweep(self.engine, self.store, retain_seconds=2.0, keep_seconds=3.0)
        if dice.random() < 0.3:
            orphans.collect(self.engine, self.store, AT_ONCE)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_at_once_every_image_that_is_shown_is_there_and_no_other(
    engine: Engine,
    store: ObjectStore,
    make_tenant: Callable[..., Tenant],
    make_worker: Callable[..., UUID],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "BATCH", 3)
    world = World(engine, store, [make_tenant(), make_tenant(max_queued=8)], seed)
    workers = [make_worker(QUEUES, name=f"worker-{number}") for number in range(3)]
    deeds: list[Callable[[random.Random], Any]] = [world.submit, world.submit, world.meddle, world.reconcile]
    deeds += [lambda dice, worker=worker: world.work(dice, worker) for worker in workers]
    run_all(world, deeds)
    drain(world, workers[0])
    assert world.wrong == []
    check_ends(world)
    check_images(world)
    # It did meet what it is about.
    assert all(world.counts[word] for word in ("hit", "follower", "made", "lease lost", "looked")), world.counts


def run_all(world: World, deeds: list[Callable[[random.Random], Any]]) -> None:
    def repeat(number: int, deed: Callable[[random.Random], Any]) -> None:
        dice = random.Random(f"{world.seed} {number}")
        for _ in range(ROUNDS):
            try:
                deed(dice)
            except Exception:  # noqa: BLE001 - a deadlock, a constraint: whatever it is, it is wrong
                world.wrong.append(traceback.format_exc())

    threads = [threading.Thread(target=repeat, args=pair) for pair in enumerate(deeds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert not any(thread.is_alive() for thread in threads)


def drain(world: World, worker: UUID) -> None:
    """Lets everything end that has not."""
    table = tables.jobs
    unfinished = sa.select(sa.func.count()).where(table.c.finished_at.is_(None))
    dice = random.Random(world.seed)
    for _ in range(1000):
        past = table.update().where(table.c.lease_expires_at.is_not(None)).values(lease_expires_at=sa.func.now())
        world.do(lambda conn, past=past: conn.execute(past))
        world.do(queue.reap)
        # What waits out a backoff need not wait here.
        now = table.update().where(table.c.state == "queued").values(available_at=sa.func.now())
        world.do(lambda conn, now=now: conn.execute(now))
        if not world.work(dice, worker, well=True) and not world.do(lambda conn: conn.scalar(unfinished)):
            return
    pytest.fail("jobs are left that nobody can end")


def check_ends(world: World) -> None:
    """Each job ended once; each was counted once, whether it is still there or not."""
    events, usage = tables.events, tables.usage
    with transaction(world.engine) as conn:
        for job in conn.execute(sa.select(tables.jobs)).mappings():
            said = sa.select(events.c.data["state"].astext).where(events.c.job_id == job["id"]).order_by(events.c.seq)
            states = [State(word) for word in conn.scalars(said)]
            assert states[-1] == job["state"] and sum(state.terminal for state in states) == 1
            assert job["leader_id"] is None
        totals = conn.execute(sa.select(*(sa.func.sum(usage.c[name]) for name in ("jobs", "cached", "images")))).one()
    made = world.counts["made"] + world.counts["handed over"]
    assert int(totals[0]) == len(world.submitted) and int(totals[2]) == made
    assert int(totals[1]) >= world.counts["hit"]


def check_images(world: World) -> None:
    shown: set[str] = set()
    with transaction(world.engine) as conn:
        succeeded = [Job.from_row(row) for row in conn.execute(sa.select(tables.jobs)).mappings()]
        for job in succeeded:
            artifacts = lookup.artifacts_of(conn, [job.id]).get(job.id, [])
            assert len(artifacts) == (job.state is State.SUCCEEDED and job.artifacts_expired_at is None)
            for artifact in artifacts:
                shown.add(artifact.object_key)
                check_image(world, job, artifact)
    orphans.collect(world.engine, world.store, AT_ONCE)
    assert {stored.key for stored in world.store.list_keys("tenants/")} == shown


def check_image(world: World, job: Job, artifact: Artifact) -> None:
    """It is there, and of the tenant, the prompt, and unless any would do, the seed."""
    given = job.spec["input"]
    try:
        text = world.store.get_bytes(artifact.object_key).decode()
    except NotFound as exc:
        raise AssertionError(f"{job.id} shows an image that is not there") from exc
    wanted = f"{job.tenant_id} {given['prompt']}"
    assert text.startswith(wanted)
    if job.spec["cache"] != "any_seed":
        assert text == f"{wanted} {given['seed']}"
