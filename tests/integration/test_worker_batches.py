"""Jobs of several tenants in one call of the model: each has its own lease, its own reasons to stop and its own end."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import worker_handlers
from sqlalchemy import Engine

from calotype import queue, tables
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import connect_engine, transaction
from calotype.doorbell import Doorbell
from calotype.jobs import Job, State
from calotype.settings import Settings
from calotype.tenants import Tenant
from worker import lease
from worker.cache import ModelCache
from worker.execution import Executor
from worker.exit import ExitCode
from worker.families import HANDLERS

Eventually = Callable[..., Any]
Submit = Callable[..., Job]
GetJob = Callable[[UUID], Job]
WORKER_PROCESS = str(Path(__file__).with_name("worker_process.py"))


@pytest.fixture
def submit(make_job: Callable[..., Job], make_tenant: Callable[..., Tenant]) -> Submit:
    """`submit(path=…)`: a job of a tenant of its own that may share a call with the others; see `run_batch`."""

    def make(fields: dict[str, Any] | None = None, **plan: Any) -> Job:
        shared = {"tenant_id": make_tenant().id, "batch_key": "equal", "batch_limit": 8}
        return make_job(spec=worker_handlers.spec("", **plan), **{**shared, **(fields or {})})

    return make


@pytest.fixture
def events(engine: Engine) -> Callable[[UUID, str], list[dict[str, Any]]]:
    """`events(job_id, "log")`: what the events of a type say, in order."""

    def read(job_id: UUID, kind: str) -> list[dict[str, Any]]:
        table = tables.events
        statement = sa.select(table.c.data).where(table.c.job_id == job_id, table.c.type == kind).order_by(table.c.seq)
        with transaction(engine) as conn:
            return list(conn.execute(statement).scalars())

    return read


class Bench:
    """An executor, and a thread for it to work in."""

    def __init__(self, settings: Settings, store: ObjectStore, worker_id: UUID) -> None:
        self.settings, self.worker_id = settings, worker_id
        self.engine = connect_engine(settings, application_name="executor", pool_size=4)
        self.lease_engine = connect_engine(settings, application_name="lease of the test", pool_size=1)
        self.shutdown, self.doorbell = threading.Event(), Doorbell(settings)
        self.executor = Executor(
            engine=self.engine,
            lease_engine=self.lease_engine,
            settings=settings,
            store=store,
            models=ModelCache(settings, store),
            doorbell=self.doorbell,
            shutdown=self.shutdown,
        )
        self.threads: list[threading.Thread] = []

    def claim(self, most_units: int = 8) -> tuple[Job, ...]:
        claimant = queue.Claimant(
            worker_id=self.worker_id,
            queues=(worker_handlers.QUEUE,),
            lease_seconds=self.settings.lease_seconds,
            most_units=most_units,
        )
        with transaction(self.engine) as conn:
            return queue.claim_batch(conn, claimant).jobs

    def start(self, *expected: Job) -> threading.Thread:
        """Claim a batch, which must be of these jobs, and run it in a thread."""
        jobs = self.claim()
        assert {job.id for job in jobs} == {job.id for job in expected}
        thread = threading.Thread(target=self.executor.execute, args=(jobs,))
        thread.start()
        self.threads.append(thread)
        return thread

    def run(self, *expected: Job) -> None:
        thread = self.start(*expected)
        thread.join(timeout=30)
        assert not thread.is_alive()

    def close(self) -> None:
        self.shutdown.set()
        for thread in self.threads:
            thread.join(timeout=20)
            assert not thread.is_alive()
        self.executor.wait(20)
        self.doorbell.close()
        self.engine.dispose()
        self.lease_engine.dispose()


@pytest.fixture
def start_bench(
    settings: Settings, store: ObjectStore, make_worker: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setitem(HANDLERS, worker_handlers.QUEUE, worker_handlers.BATCH_HANDLER)
    made: list[Bench] = []

    def start(**changes: Any) -> Bench:
        made.append(Bench(dataclasses.replace(settings, **changes), store, make_worker()))
        return made[-1]

    yield start
    for bench in made:
        bench.close()


@pytest.fixture
def bench(start_bench: Callable[..., Bench]) -> Bench:
    return start_bench()


def sizes(path: Path) -> list[int]:
    """How many jobs the calls had that a job of the plan took part in."""
    return [int(line) for line in path.read_text().split()]


def cancel(engine: Engine, job: Job) -> State:
    with transaction(engine) as conn:
        return queue.cancel(conn, job.tenant_id, job.id).state


def test_jobs_of_several_tenants_share_a_call_and_each_publishes_its_own(
    bench: Bench, submit: Submit, get_job: GetJob, artifacts: Callable[[UUID], list[Artifact]], tmp_path: Path
) -> None:
    jobs = [submit(calls=tmp_path / "calls") for _ in range(3)]
    assert len({job.tenant_id for job in jobs}) == 3
    bench.run(*jobs)
    assert sizes(tmp_path / "calls") == [3, 3, 3]
    for job in jobs:
        done = get_job(job.id)
        assert (done.state, done.attempt, done.epoch) == (State.SUCCEEDED, 1, 1)
        assert done.result is not None
        assert done.result["size"] == 3
        [artifact] = artifacts(job.id)
        assert artifact.object_key == f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"
    assert bench.executor.running == ()


def test_a_job_that_is_done_is_not_held_back_by_the_others(
    bench: Bench, submit: Submit, get_job: GetJob, eventually: Eventually, tmp_path: Path
) -> None:
    quick, slow = submit(), submit(path=tmp_path / "go")
    thread = bench.start(quick, slow)
    eventually(lambda: get_job(quick.id).state is State.SUCCEEDED)
    assert get_job(slow.id).state is State.RUNNING
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert get_job(slow.id).state is State.SUCCEEDED


def test_a_job_that_poisons_the_call_fails_alone_and_the_others_finish(
    bench: Bench, submit: Submit, get_job: GetJob, tmp_path: Path
) -> None:
    bad, good, other = submit(poison="unknown"), submit(calls=tmp_path / "calls"), submit()
    bench.run(good, bad, other)
    failed = get_job(bad.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error.code == "internal_error"
    for job in (good, other):
        done = get_job(job.id)
        assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    # Once with the others, once alone.
    assert sizes(tmp_path / "calls") == [3, 1]


def test_a_job_that_cannot_be_prepared_fails_alone_before_the_call(
    bench: Bench, submit: Submit, get_job: GetJob, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    good, bad = submit(calls=tmp_path / "calls"), submit(prepare="bad_input")
    unreadable = make_job(spec={**worker_handlers.spec(""), "colour": "blue"}, batch_key="equal", batch_limit=8)
    bench.run(good, bad, unreadable)
    for job in (bad, unreadable):
        error = get_job(job.id).error
        assert error is not None
        assert error.code == "bad_input"
    assert get_job(good.id).state is State.SUCCEEDED
    assert sizes(tmp_path / "calls") == [1]


def test_a_dependency_that_is_down_puts_all_back_at_once(bench: Bench, submit: Submit, get_job: GetJob) -> None:
    jobs = [submit(poison="dependency"), submit()]
    bench.run(*jobs)
    for job in jobs:
        waiting = get_job(job.id)
        assert (waiting.state, waiting.attempt) == (State.QUEUED, 1)


def test_a_canceled_job_leaves_the_call_at_its_next_step_and_the_others_go_on(
    bench: Bench,
    submit: Submit,
    get_job: GetJob,
    artifacts: Callable[[UUID], list[Artifact]],
    eventually: Eventually,
    engine: Engine,
    tmp_path: Path,
) -> None:
    plan = {"path": tmp_path / "go"}
    unwanted, wanted = submit(**plan, began=tmp_path / "began"), submit(**plan)
    thread = bench.start(unwanted, wanted)
    eventually((tmp_path / "began").exists)
    assert cancel(engine, unwanted) is State.CANCELING
    eventually(lambda: get_job(unwanted.id).state is State.CANCELED, 5.0)
    assert get_job(wanted.id).state is State.RUNNING
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert get_job(wanted.id).state is State.SUCCEEDED
    assert artifacts(unwanted.id) == []


def test_a_call_that_everybody_has_left_ends(
    bench: Bench, submit: Submit, get_job: GetJob, eventually: Eventually, engine: Engine, tmp_path: Path
) -> None:
    jobs = [submit(path=tmp_path / "never", began=tmp_path / "began") for _ in range(2)]
    thread = bench.start(*jobs)
    eventually((tmp_path / "began").exists)
    for job in jobs:
        cancel(engine, job)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert {get_job(job.id).state for job in jobs} == {State.CANCELED}


def test_a_job_that_runs_out_of_time_fails_alone(bench: Bench, submit: Submit, get_job: GetJob, tmp_path: Path) -> None:
    late = submit({"timeout_seconds": 0.3}, path=tmp_path / "go")
    patient = submit(path=tmp_path / "go")
    thread = bench.start(late, patient)
    deadline = time.monotonic() + 10
    while get_job(late.id).state is State.RUNNING and time.monotonic() < deadline:
        time.sleep(0.05)
    error = get_job(late.id).error
    assert error is not None
    assert error.code == "timeout"
    assert get_job(patient.id).state is State.RUNNING
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert get_job(patient.id).state is State.SUCCEEDED


def test_a_job_that_waits_for_its_turn_alone_can_still_be_canceled(
    bench: Bench, submit: Submit, get_job: GetJob, eventually: Eventually, engine: Engine, tmp_path: Path
) -> None:
    # The last one's poison makes them run one by one, in this order.
    first = submit({"priority": 9}, path=tmp_path / "go", calls=tmp_path / "calls")
    waiting, poison = submit(path=tmp_path / "never"), submit({"priority": 1}, poison="unknown")
    thread = bench.start(first, waiting, poison)
    eventually(lambda: (tmp_path / "calls").exists() and sizes(tmp_path / "calls") == [3, 1])
    cancel(engine, waiting)
    eventually(lambda: get_job(waiting.id).state is State.CANCELED, 5.0)
    assert get_job(first.id).state is State.RUNNING
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert get_job(first.id).state is State.SUCCEEDED
    assert get_job(poison.id).state is State.FAILED


def test_the_leases_of_all_are_renewed_over_one_connection(
    start_bench: Callable[..., Bench],
    submit: Submit,
    get_job: GetJob,
    eventually: Eventually,
    engine: Engine,
    tmp_path: Path,
) -> None:
    bench = start_bench(lease_seconds=5.0, heartbeat_seconds=0.3)
    jobs = [submit(path=tmp_path / "go") for _ in range(4)]
    thread = bench.start(*jobs)
    first = {job.id: get_job(job.id).lease_expires_at for job in jobs}

    def renewed() -> bool:
        now = {job.id: get_job(job.id).lease_expires_at for job in jobs}
        return all(now[job_id] > expiry for job_id, expiry in first.items())  # type: ignore[operator]

    eventually(renewed)
    with transaction(engine) as conn:
        connections = conn.execute(
            sa.text("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lease of the test'")
        ).scalar_one()
    assert connections == 1
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert {get_job(job.id).epoch for job in jobs} == {1}


def test_a_job_that_another_worker_took_leaves_and_the_others_keep_their_leases(
    bench: Bench,
    submit: Submit,
    get_job: GetJob,
    artifacts: Callable[[UUID], list[Artifact]],
    eventually: Eventually,
    engine: Engine,
    make_worker: Callable[..., UUID],
    tmp_path: Path,
) -> None:
    taken = submit(path=tmp_path / "go", began=tmp_path / "began")
    kept = submit(path=tmp_path / "go")
    thread = bench.start(taken, kept)
    eventually((tmp_path / "began").exists)
    other = make_worker()
    with transaction(engine) as conn:
        lapsed = sa.text("now() - interval '1 s'")
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == taken.id).values(lease_expires_at=lapsed))
        assert [job.id for job in queue.reap(conn)] == [taken.id]
        assert queue.claim(conn, other, [worker_handlers.QUEUE], 60.0) is not None
    eventually(lambda: [member.job.id for member in bench.executor.running] == [kept.id])
    expiry = get_job(kept.id).lease_expires_at
    assert expiry is not None
    eventually(lambda: (now := get_job(kept.id).lease_expires_at) is not None and now > expiry)
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert get_job(kept.id).state is State.SUCCEEDED
    held = get_job(taken.id)
    assert (held.state, held.worker_id, held.epoch) == (State.RUNNING, other, 2)
    assert artifacts(taken.id) == []


def test_a_row_that_somebody_holds_locked_does_not_keep_the_others_from_their_leases(
    start_bench: Callable[..., Bench],
    submit: Submit,
    get_job: GetJob,
    eventually: Eventually,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(lease, "LOCK_TIMEOUT", "100ms")
    bench = start_bench(heartbeat_seconds=0.3)
    locked, free = submit(path=tmp_path / "go"), submit(path=tmp_path / "go")
    thread = bench.start(locked, free)
    with engine.connect() as holder, holder.begin():
        holder.execute(sa.select(tables.jobs.c.id).where(tables.jobs.c.id == locked.id).with_for_update())
        before = get_job(free.id).lease_expires_at
        assert before is not None
        eventually(lambda: (now := get_job(free.id).lease_expires_at) is not None and now > before)
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    assert {get_job(job.id).state for job in (locked, free)} == {State.SUCCEEDED}


def test_a_shutdown_gives_every_job_back_and_costs_none_an_attempt(
    bench: Bench, submit: Submit, get_job: GetJob, eventually: Eventually, tmp_path: Path
) -> None:
    jobs = [submit(path=tmp_path / "never", began=tmp_path / "began") for _ in range(3)]
    thread = bench.start(*jobs)
    eventually((tmp_path / "began").exists)
    bench.shutdown.set()
    thread.join(timeout=20)
    for job in jobs:
        released = get_job(job.id)
        assert (released.state, released.attempt, released.worker_id) == (State.QUEUED, 0, None)


def test_the_next_batch_is_computed_while_the_files_of_the_last_are_uploaded(
    bench: Bench,
    submit: Submit,
    get_job: GetJob,
    eventually: Eventually,
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, may_upload = store.put_file, threading.Event()

    def put_file(key: str, path: Path, content_type: str) -> None:
        assert may_upload.wait(20)
        real(key, path, content_type)

    monkeypatch.setattr(store, "put_file", put_file)
    earlier = submit()
    bench.executor.compute(bench.claim())
    assert get_job(earlier.id).state is State.RUNNING
    later = submit(began=tmp_path / "began")
    thread = threading.Thread(target=bench.executor.compute, args=(bench.claim(),))
    thread.start()
    eventually((tmp_path / "began").exists)
    lease_then = get_job(earlier.id).lease_expires_at
    assert lease_then is not None
    eventually(lambda: (now := get_job(earlier.id).lease_expires_at) is not None and now > lease_then)
    # Not a third: results must not pile up.
    assert thread.is_alive()
    may_upload.set()
    thread.join(timeout=20)
    assert bench.executor.wait(20)
    assert {get_job(job.id).state for job in (earlier, later)} == {State.SUCCEEDED}


def test_what_a_job_says_can_be_read_while_it_runs_and_the_last_of_it_before_its_end(
    bench: Bench,
    make_job: Callable[..., Job],
    events: Callable[[UUID, str], list[dict[str, Any]]],
    eventually: Eventually,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(HANDLERS, worker_handlers.QUEUE, worker_handlers.HANDLER)
    lines = ["first", "a NUL \x00 and a half \udc80 of a character", "third"]
    job = make_job(spec=worker_handlers.spec("talk", lines=lines, path=tmp_path / "go"))
    thread = bench.start(job)
    eventually(lambda: len(events(job.id, "log")) == 3)
    assert [event["message"][:5] for event in events(job.id, "log")] == ["first", "a NUL", "third"]
    assert events(job.id, "metrics") == [{"step": 1, "loss": 0.5, "norm": None, "unknown": None}]
    (tmp_path / "go").touch()
    thread.join(timeout=20)
    table = tables.events
    with transaction(engine) as conn:
        ordered = conn.execute(sa.select(table.c.type).where(table.c.job_id == job.id).order_by(table.c.seq)).scalars()
        assert list(ordered)[-2:] == ["log", "state"]
    assert events(job.id, "log")[-1]["message"] == "the last word"


def test_a_job_that_says_too_much_loses_the_oldest_and_says_so(
    bench: Bench,
    make_job: Callable[..., Job],
    events: Callable[[UUID, str], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(HANDLERS, worker_handlers.QUEUE, worker_handlers.HANDLER)
    job = make_job(spec=worker_handlers.spec("talk", lines=["NUMBER"], times=800))
    bench.run(job)
    said = [event["message"] for event in events(job.id, "log")]
    assert said[-2:] == ["799", "the last word"]
    assert len(said) <= 501
    assert "older lines were dropped" in said[0]


@pytest.fixture
def start_worker(settings: Settings, store: ObjectStore, start_python: Callable[..., Any]) -> Callable[..., Any]:
    """`start_worker(name, **changed settings)`: a process that runs batches; its log is `<name>.log`."""

    def start(name: str, **changes: Any) -> subprocess.Popen[bytes]:
        return start_python(name, WORKER_PROCESS, name, "batch", settings=dataclasses.replace(settings, **changes))

    return start


def test_a_worker_that_is_told_to_stop_gives_back_all_and_another_finishes_them_together(
    start_worker: Callable[..., Any], submit: Submit, get_job: GetJob, eventually: Eventually, tmp_path: Path
) -> None:
    jobs = [submit(path=tmp_path / "go", calls=tmp_path / "calls") for _ in range(3)]
    first = start_worker("first")
    eventually(lambda: (tmp_path / "calls").exists() and sizes(tmp_path / "calls") == [3, 3, 3], 20.0)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=15) == ExitCode.CLEAN
    assert {(get_job(job.id).state, get_job(job.id).attempt) for job in jobs} == {(State.QUEUED, 0)}
    (tmp_path / "go").touch()
    start_worker("second")
    eventually(lambda: all(get_job(job.id).state is State.SUCCEEDED for job in jobs), 20.0)
    assert sizes(tmp_path / "calls") == [3] * 6


@pytest.mark.parametrize(
    ("plan", "code", "exit_code"),
    [({"hang": True}, "stalled", ExitCode.STALLED), ({"poison": "device"}, "internal_error", ExitCode.DEVICE)],
    ids=["a call that hangs", "a device that is lost"],
)
def test_what_ends_the_process_costs_all_an_attempt_and_then_each_runs_alone(
    start_worker: Callable[..., Any],
    submit: Submit,
    get_job: GetJob,
    eventually: Eventually,
    tmp_path: Path,
    plan: dict[str, Any],
    code: str,
    exit_code: ExitCode,
) -> None:
    culprit = submit({"max_attempts": 1}, **plan)
    others = [submit(calls=tmp_path / "calls", path=tmp_path / "go") for _ in range(2)]
    assert start_worker("victim", stall_seconds=0.7).wait(timeout=30) == exit_code
    failed = get_job(culprit.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert failed.error.code == code
    assert {(get_job(job.id).state, get_job(job.id).attempt) for job in others} == {(State.QUEUED, 1)}
    (tmp_path / "go").touch()
    start_worker("heir")
    eventually(lambda: all(get_job(job.id).state is State.SUCCEEDED for job in others), 20.0)
    assert sizes(tmp_path / "calls") == [3, 3, 1, 1]


def test_a_job_that_ignores_its_timeout_ends_the_process_and_the_others_are_given_back(
    start_worker: Callable[..., Any], submit: Submit, get_job: GetJob
) -> None:
    deaf = submit({"timeout_seconds": 0.2, "max_attempts": 1}, hang=True)
    innocent = submit()
    assert start_worker("victim").wait(timeout=30) == ExitCode.TIMEOUT
    error = get_job(deaf.id).error
    assert error is not None
    assert error.code == "timeout"
    given_back = get_job(innocent.id)
    assert (given_back.state, given_back.attempt) == (State.QUEUED, 0)
