"""Worker processes that are killed, stopped, frozen and started without Redis: every job still ends exactly once."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import worker_handlers
from postgres_outage import Outage
from sqlalchemy import Engine

from calotype import workers
from calotype.artifacts import Artifact, ObjectStore, job_prefix
from calotype.database import connect_engine, transaction
from calotype.doorbell import Doorbell
from calotype.jobs import Job, State
from calotype.local.process import free_port
from calotype.settings import Settings
from calotype.workers import list_workers
from worker import orphans
from worker.exit import ExitCode
from worker.reconciler import Leadership, Reconciler

Eventually = Callable[..., Any]
Submit = Callable[..., Job]
StartWorker = Callable[..., subprocess.Popen[bytes]]
WORKER_PROCESS = str(Path(__file__).with_name("worker_process.py"))


@pytest.fixture
def start_worker(settings: Settings, store: ObjectStore, start_python: Callable[..., Any]) -> StartWorker:
    """`start_worker(name, **changed settings)`: a process; its log is `<name>.log` below `tmp_path`."""

    def start(name: str = "w", **changes: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = start_python(
            name, WORKER_PROCESS, name, settings=dataclasses.replace(settings, **changes)
        )
        return process

    return start


@pytest.fixture
def reconciling(settings: Settings, store: ObjectStore, engine: Engine) -> Iterator[None]:
    """A reconciler that works while the test runs."""
    leader_engine = connect_engine(settings, application_name="leader", pool_size=1)
    leadership, doorbell, stopping = Leadership(leader_engine), Doorbell(settings), threading.Event()
    reconciler = Reconciler(engine=engine, settings=settings, store=store, doorbell=doorbell, leadership=leadership)

    def rounds() -> None:
        while not stopping.wait(settings.reconcile_seconds):
            reconciler.round()

    thread = threading.Thread(target=rounds)
    thread.start()
    yield
    stopping.set()
    thread.join()
    doorbell.close()
    leadership.give_up()
    leader_engine.dispose()


def test_a_job_whose_worker_is_killed_is_finished_once_by_another(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    artifacts: Callable[[UUID], list[Artifact]],
    eventually: Eventually,
    reconciling: None,
    tmp_path: Path,
) -> None:
    job = submit("until", plan={"path": tmp_path / "go", "began": tmp_path / "began"})
    victim = start_worker("victim", lease_seconds=1.5)
    eventually((tmp_path / "began").exists, 20.0)
    victim.kill()
    victim.wait()
    (tmp_path / "go").touch()
    heir = start_worker("heir", lease_seconds=1.5)
    done = ended(job.id)
    assert (done.state, done.attempt, done.epoch) == (State.SUCCEEDED, 2, 2)
    assert done.result is not None
    assert done.result["pid"] == heir.pid
    assert [artifact.object_key for artifact in artifacts(job.id)] == [
        f"{job_prefix(job.tenant_id, job.id, 2)}image-0.png"
    ]


def test_a_worker_told_to_stop_checkpoints_releases_and_leaves_and_another_resumes(
    start_worker: StartWorker,
    submit: Submit,
    get_job: Callable[[UUID], Job],
    ended: Callable[..., Job],
    eventually: Eventually,
    engine: Engine,
    tmp_path: Path,
) -> None:
    job = submit("count", plan={"total": 9, "stop_at": 5, "path": tmp_path / "go"}, max_attempts=1)
    first = start_worker("first", heartbeat_file=tmp_path / "alive")
    eventually(lambda: (progress := get_job(job.id).progress) is not None and progress.step == 5, 20.0)
    assert (tmp_path / "alive").exists()
    with transaction(engine) as conn:
        [listed] = list_workers(conn)
    assert (listed.name, listed.pid, listed.queues) == ("first", first.pid, (worker_handlers.QUEUE,))
    assert listed.device["kind"] == "cpu"
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=10) == ExitCode.CLEAN
    released = get_job(job.id)
    assert (released.state, released.attempt, released.worker_id) == (State.QUEUED, 0, None)
    with transaction(engine) as conn:
        assert list_workers(conn) == []
    (tmp_path / "go").touch()
    start_worker("second")
    done = ended(job.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert done.result is not None
    assert done.result["first"] == 5


def test_a_second_signal_ends_a_worker_at_once_and_gives_its_job_back(
    start_worker: StartWorker,
    submit: Submit,
    get_job: Callable[[UUID], Job],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    job = submit("hang", plan={"began": tmp_path / "began"})
    worker = start_worker()
    eventually((tmp_path / "began").exists, 20.0)
    worker.send_signal(signal.SIGTERM)
    worker.send_signal(signal.SIGINT)
    assert worker.wait(timeout=10) == ExitCode.FORCED
    released = get_job(job.id)
    assert (released.state, released.attempt) == (State.QUEUED, 0)


def test_a_job_that_hangs_ends_its_process_and_fails_as_stalled(
    start_worker: StartWorker,
    submit: Submit,
    get_job: Callable[[UUID], Job],
    tmp_path: Path,
) -> None:
    job = submit("hang", plan={"began": tmp_path / "began"}, max_attempts=1)
    worker = start_worker(stall_seconds=0.5)
    assert worker.wait(timeout=20) == ExitCode.STALLED
    failed = get_job(job.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == ("stalled", True)


def test_a_job_that_ignores_its_timeout_ends_its_process(
    start_worker: StartWorker,
    submit: Submit,
    get_job: Callable[[UUID], Job],
    tmp_path: Path,
) -> None:
    job = submit("hang", plan={"began": tmp_path / "began"}, timeout_seconds=0.2)
    worker = start_worker()
    assert worker.wait(timeout=20) == ExitCode.TIMEOUT
    failed = get_job(job.id)
    assert failed.error is not None
    assert (failed.state, failed.error.code) == (State.FAILED, "timeout")


def test_a_broken_device_ends_the_process_and_the_job_is_tried_by_the_next(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
) -> None:
    job = submit("fail", plan={"how": "device", "times": 1})
    assert start_worker("broken").wait(timeout=20) == ExitCode.DEVICE
    start_worker("fresh")
    done = ended(job.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)


def test_a_worker_frozen_past_its_lease_changes_nothing_when_it_comes_back(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    artifacts: Callable[[UUID], list[Artifact]],
    eventually: Eventually,
    reconciling: None,
    engine: Engine,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    plan = {"path": tmp_path / "go", "began": tmp_path / "began", "deaf": True}
    job = submit("until", plan=plan)
    frozen = start_worker("frozen", lease_seconds=1.5)
    eventually((tmp_path / "began").exists, 20.0)
    frozen.send_signal(signal.SIGSTOP)
    (tmp_path / "go").touch()
    start_worker("heir")
    done = ended(job.id)
    [artifact] = artifacts(job.id)
    assert done.epoch == 2
    later = submit("image")
    frozen.send_signal(signal.SIGCONT)
    log = tmp_path / "frozen.log"
    eventually(lambda: b"stale" in log.read_bytes() or b"another worker has the job" in log.read_bytes(), 10.0)
    assert ended(later.id).state is State.SUCCEEDED
    assert ended(job.id) == done
    assert artifacts(job.id) == [artifact]
    # Whether it still uploaded depends on who woke first, its lease thread or its job.
    stale = f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"
    store.put_bytes(stale, b"too late")
    stored = {item.key for item in store.list_keys("tenants/")}
    assert orphans.collect(engine, store, older_than=-60.0) == 1
    assert {item.key for item in store.list_keys("tenants/")} == stored - {stale}


def test_a_worker_started_without_redis_runs_jobs_and_stops_when_told(
    start_worker: StartWorker, submit: Submit, ended: Callable[..., Job]
) -> None:
    worker = start_worker(broker_url=f"redis://127.0.0.1:{free_port()}/0")
    job = submit("image")
    assert ended(job.id).state is State.SUCCEEDED
    worker.terminate()
    assert worker.wait(timeout=10) == ExitCode.CLEAN


def test_a_worker_whose_redis_accepts_and_never_answers_runs_jobs_and_stops_when_told(
    start_worker: StartWorker, submit: Submit, ended: Callable[..., Job]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        worker = start_worker(broker_url=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        job = submit("image")
        assert ended(job.id).state is State.SUCCEEDED
        worker.terminate()
        assert worker.wait(timeout=10) == ExitCode.CLEAN


def test_a_worker_started_while_postgres_is_away_runs_jobs_when_it_is_back(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    database_url: str,
    tmp_path: Path,
) -> None:
    job, outage = submit("image"), Outage(database_url)
    outage.begin()
    start_worker("early")
    eventually(lambda: b"cannot say that this worker lives" in (tmp_path / "early.log").read_bytes(), 20.0)
    outage.end()
    assert ended(job.id).state is State.SUCCEEDED


def test_a_bell_heard_by_a_worker_that_is_busy_by_its_own_clock_is_passed_on_to_an_idle_one(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    settings: Settings,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    submit("until", plan={"path": tmp_path / "never", "began": tmp_path / "began"})
    # It has been waiting longest, so the bell goes to it.
    start_worker("busy")
    eventually(lambda: b"Connected to redis" in (tmp_path / "busy.log").read_bytes(), 20.0)
    eventually((tmp_path / "began").exists, 20.0)
    start_worker("idle", idle_poll_seconds=600.0)
    eventually(lambda: b"Connected to redis" in (tmp_path / "idle.log").read_bytes(), 20.0)
    doorbell, job = Doorbell(settings), submit("image")
    doorbell.ring(job.queue)
    done = ended(job.id, 5.0)
    doorbell.close()
    assert done.started_at is not None
    assert (done.started_at - done.created_at).total_seconds() < 1.0


def test_a_bell_heard_by_a_worker_that_an_operator_drains_is_passed_on_until_it_takes_jobs_again(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    engine: Engine,
    settings: Settings,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    start_worker("resting", idle_poll_seconds=600.0)
    eventually(lambda: b"Connected to redis" in (tmp_path / "resting.log").read_bytes(), 20.0)
    with transaction(engine) as conn:
        [resting] = list_workers(conn)
        workers.drain(conn, resting.id)
    eventually(lambda: b"draining: no new jobs" in (tmp_path / "resting.log").read_bytes(), 20.0)
    active = start_worker("active", idle_poll_seconds=600.0)
    eventually(lambda: b"Connected to redis" in (tmp_path / "active.log").read_bytes(), 20.0)
    doorbell = Doorbell(settings)
    # Both listen, and who hears a bell is for Redis to choose.
    for _ in range(4):
        job = submit("image")
        doorbell.ring(job.queue)
        assert ended(job.id).worker_id != resting.id

    active.terminate()
    active.wait(30)
    with transaction(engine) as conn:
        workers.undrain(conn, resting.id)
    last = submit("image")
    doorbell.ring(last.queue)
    assert ended(last.id).worker_id == resting.id
    doorbell.close()


def test_a_doorbell_wakes_an_idle_worker_long_before_its_own_clock_and_again_after_each_job(
    start_worker: StartWorker,
    submit: Submit,
    ended: Callable[..., Job],
    settings: Settings,
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    start_worker("idle", idle_poll_seconds=600.0)
    eventually(lambda: b"Connected to redis" in (tmp_path / "idle.log").read_bytes(), 20.0)
    doorbell = Doorbell(settings)
    for _ in range(3):
        job = submit("image")
        doorbell.ring(job.queue)
        done = ended(job.id, 5.0)
        assert done.started_at is not None
        assert (done.started_at - done.created_at).total_seconds() < 1.0
    doorbell.close()
