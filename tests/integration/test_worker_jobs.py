"""What becomes of a job in a worker: the real drain loop, lease thread and services, with handlers made for it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
import worker_handlers
from postgres_outage import Outage
from sqlalchemy import Engine

from calotype import queue, registry, tables
from calotype.artifacts import ObjectStore, job_prefix
from calotype.database import connect_engine, transaction
from calotype.doorbell import Doorbell
from calotype.errors import DependencyDown
from calotype.jobs import Artifact, Job, State
from calotype.settings import Settings
from worker.cache import ModelCache
from worker.drain import DrainLoop
from worker.execution import Executor
from worker.families import HANDLERS
from worker.reconciler import Leadership, Reconciler

Eventually = Callable[..., Any]
Submit = Callable[..., Job]
GetJob = Callable[[UUID], Job]


@dataclasses.dataclass
class Crew:
    """A worker without its process: drain loop and executor in a thread of the test."""

    loop: DrainLoop
    executor: Executor
    shutdown: threading.Event
    thread: threading.Thread
    engines: list[Engine]
    doorbell: Doorbell

    def stop(self) -> None:
        self.shutdown.set()
        self.loop.ring()
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()
        self.doorbell.close()
        for made in self.engines:
            made.dispose()


@pytest.fixture
def start_crew(
    settings: Settings, store: ObjectStore, make_worker: Callable[..., UUID], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Crew]]:
    """`start_crew(**changed settings)` starts a worker in a thread."""
    monkeypatch.setitem(HANDLERS, worker_handlers.QUEUE, worker_handlers.HANDLER)
    crews: list[Crew] = []

    def start(**changes: Any) -> Crew:
        changed = dataclasses.replace(settings, **changes)
        engines = [connect_engine(changed, application_name=name, pool_size=2) for name in ("drain", "lease")]
        shutdown, doorbell = threading.Event(), Doorbell(changed)
        executor = Executor(
            engine=engines[0],
            lease_engine=engines[1],
            settings=changed,
            store=store,
            models=ModelCache(changed, store),
            doorbell=doorbell,
            shutdown=shutdown,
        )
        loop = DrainLoop(
            engine=engines[0],
            settings=changed,
            worker_id=make_worker(),
            queues=[worker_handlers.QUEUE],
            execute=executor.execute,
            shutdown=shutdown,
        )
        crew = Crew(loop, executor, shutdown, threading.Thread(target=loop.run), engines, doorbell)
        crew.thread.start()
        crews.append(crew)
        return crew

    yield start
    for crew in crews:
        crew.stop()


def test_a_job_runs_and_its_files_and_result_are_published(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    artifacts: Callable[[UUID], list[Artifact]],
    store: ObjectStore,
) -> None:
    job = submit("image", plan={"text": "pixels"})
    start_crew()
    done = ended(job.id)
    assert done.state is State.SUCCEEDED
    assert done.result is not None
    assert done.result["epoch"] == 1
    [artifact] = artifacts(job.id)
    assert artifact.object_key == f"{job_prefix(job.tenant_id, job.id, 1)}image-0.png"
    assert (artifact.content_type, artifact.width, artifact.height, artifact.seed) == ("image/png", 64, 64, 1)
    assert store.get_bytes(artifact.object_key) == b"pixels"


def test_everything_queued_is_drained_without_waiting_for_the_clock(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job]
) -> None:
    jobs = [submit("image") for _ in range(5)]
    start_crew(idle_poll_seconds=60.0)
    assert {ended(job.id).state for job in jobs} == {State.SUCCEEDED}


def test_a_ring_during_a_drain_leads_to_one_more_look(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], eventually: Eventually, tmp_path: Path
) -> None:
    slow = submit("until", plan={"path": tmp_path / "go", "began": tmp_path / "began"})
    crew = start_crew(idle_poll_seconds=60.0)
    eventually((tmp_path / "began").exists)
    tickets = [crew.loop.ring() for _ in range(3)]
    (tmp_path / "go").touch()
    for ticket in tickets:
        crew.loop.wait_answered(ticket)
    late = submit("image")
    crew.loop.wait_answered(crew.loop.ring())
    assert ended(late.id).state is ended(slow.id).state is State.SUCCEEDED


def test_a_model_that_a_job_made_is_registered_with_its_files(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], engine: Engine, store: ObjectStore
) -> None:
    job = submit("model", plan={"name": "my-brand"})
    start_crew()
    done = ended(job.id)
    assert done.result == {"model": "my-brand@1"}
    with transaction(engine) as conn:
        version = registry.find_version(conn, job.tenant_id, "my-brand")
    files = {file.path: file for file in version.files}
    assert set(files) == {"config.json", "unet/weights.safetensors"}
    assert store.get_bytes(files["unet/weights.safetensors"].object_key) == b"weights"
    assert version.job_id == job.id


@pytest.mark.parametrize(
    ("how", "code", "retryable"),
    [
        ("bad_input", "bad_input", False),
        ("unknown", "internal_error", False),
        ("memory", "out_of_memory", True),
        ("disk", "disk_full", True),
        ("dependency", "dependency_down", True),
    ],
)
def test_a_failure_is_classified_and_leaves_the_worker_fit_for_the_next_job(
    how: str,
    code: str,
    retryable: bool,
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
) -> None:
    bad, good = submit("fail", plan={"how": how}, max_attempts=1), submit("image")
    start_crew()
    failed = ended(bad.id)
    assert failed.state is State.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.retryable) == (code, retryable)
    assert failed.error.detail
    assert ended(good.id).state is State.SUCCEEDED


def test_an_error_shows_no_secrets(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], settings: Settings
) -> None:
    job = submit("fail", plan={"how": "leak"})
    start_crew()
    error = ended(job.id).error
    assert error is not None
    assert error.detail.startswith("RuntimeError: cannot reach *** with ***")


def test_a_retryable_failure_is_tried_again_after_a_pause(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job]
) -> None:
    job = submit("fail", plan={"how": "dependency", "times": 2}, max_attempts=3)
    start_crew()
    done = ended(job.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 3)
    assert done.available_at > done.created_at


def test_a_spec_that_this_release_cannot_read_is_bad_input(
    start_crew: Callable[..., Crew], make_job: Callable[..., Job], ended: Callable[..., Job]
) -> None:
    job = make_job(spec={**worker_handlers.spec("image"), "colour": "blue"})
    start_crew()
    error = ended(job.id).error
    assert error is not None
    assert error.code == "bad_input"
    assert "colour" in error.detail


def test_a_queue_whose_code_cannot_be_imported_says_what_to_install(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit("image", max_attempts=1)
    monkeypatch.setitem(HANDLERS, worker_handlers.QUEUE, "package_that_is_missing:run")
    start_crew()
    error = ended(job.id).error
    assert error is not None
    assert "pip install" in error.detail


def test_cancel_reaches_a_running_job_and_nothing_is_published(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    artifacts: Callable[[UUID], list[Artifact]],
    engine: Engine,
    tmp_path: Path,
) -> None:
    job = submit("until", plan={"path": tmp_path / "never", "began": tmp_path / "began"})
    start_crew()
    eventually((tmp_path / "began").exists)
    with transaction(engine) as conn:
        assert queue.cancel(conn, job.tenant_id, job.id).state is State.CANCELING
    # The bound is one step (0.02 s here) plus 2 s.
    assert ended(job.id, 2.0).state is State.CANCELED
    assert artifacts(job.id) == []


def test_the_lease_thread_survives_what_nobody_foresaw(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    real, failures = queue.look, 0

    def look(*arguments: Any) -> State:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise RuntimeError("nobody foresaw this")
        return real(*arguments)

    monkeypatch.setattr(queue, "look", look)
    job = submit("until", plan={"path": tmp_path / "never", "began": tmp_path / "began"})
    start_crew(heartbeat_seconds=1.5)
    eventually((tmp_path / "began").exists)
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
    assert ended(job.id, 5.0).state is State.CANCELED


def test_a_job_canceled_while_it_computes_its_last_step_stays_canceled(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    artifacts: Callable[[UUID], list[Artifact]],
    engine: Engine,
    tmp_path: Path,
) -> None:
    # The lease thread does not look before the job is over: the finishing transaction itself must notice.
    job = submit("until", plan={"path": tmp_path / "go", "began": tmp_path / "began", "deaf": True})
    start_crew(cancel_poll_seconds=60.0, heartbeat_seconds=60.0, lease_seconds=120.0)
    eventually((tmp_path / "began").exists)
    with transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
    (tmp_path / "go").touch()
    assert ended(job.id).state is State.CANCELED
    assert artifacts(job.id) == []


def test_a_job_that_exceeds_its_timeout_fails_with_that_code(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], tmp_path: Path
) -> None:
    job = submit("until", plan={"path": tmp_path / "never"}, timeout_seconds=0.3)
    start_crew()
    done = ended(job.id)
    assert done.state is State.FAILED
    assert done.error is not None
    assert (done.error.code, done.error.retryable) == ("timeout", False)
    assert done.attempt == 1


def test_progress_can_be_read_while_the_job_runs(
    start_crew: Callable[..., Crew], submit: Submit, get_job: GetJob, eventually: Eventually, tmp_path: Path
) -> None:
    job = submit("count", plan={"total": 4, "stop_at": 3, "path": tmp_path / "go"})
    start_crew()
    eventually(lambda: get_job(job.id).progress is not None)
    progress = get_job(job.id).progress
    assert progress is not None
    assert (progress.step, progress.total, progress.fraction, progress.stage) == (3, 4, 0.75, "counting")
    (tmp_path / "go").touch()


def test_a_job_released_at_shutdown_resumes_from_its_checkpoint_and_loses_no_attempt(
    start_crew: Callable[..., Crew],
    submit: Submit,
    get_job: GetJob,
    ended: Callable[..., Job],
    eventually: Eventually,
    store: ObjectStore,
    tmp_path: Path,
) -> None:
    job = submit("count", plan={"total": 6, "stop_at": 4, "path": tmp_path / "go"}, max_attempts=1)
    crew = start_crew()
    eventually(lambda: (progress := get_job(job.id).progress) is not None and progress.step == 4)
    crew.stop()
    released = get_job(job.id)
    assert (released.state, released.attempt) == (State.QUEUED, 0)
    (tmp_path / "go").touch()
    start_crew()
    done = ended(job.id)
    assert done.state is State.SUCCEEDED
    assert done.result is not None
    assert (done.result["first"], done.attempt, done.epoch) == (4, 1, 2)


def test_only_the_newest_checkpoint_is_kept(
    start_crew: Callable[..., Crew], submit: Submit, ended: Callable[..., Job], store: ObjectStore
) -> None:
    job = submit("save_each", plan={"steps": 3})
    start_crew()
    ended(job.id)
    keys = [stored.key for stored in store.list_keys(f"{job_prefix(job.tenant_id, job.id, 1)}checkpoints/")]
    assert len(keys) == 1
    assert store.get_bytes(keys[0]) == b"3"


def test_an_upload_waits_for_a_store_that_is_away(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, refusals = store.put_file, iter([True, True])

    def put_file(key: str, path: Path, content_type: str) -> None:
        if next(refusals, False):
            raise DependencyDown("The store is away.")
        real(key, path, content_type)

    monkeypatch.setattr(store, "put_file", put_file)
    job = submit("image")
    start_crew()
    done = ended(job.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)


@pytest.fixture
def outage(database_url: str) -> Iterator[Outage]:
    made = Outage(database_url)
    yield made
    made.end()


def test_a_job_that_computes_while_postgres_is_away_for_two_leases_finishes_once(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    artifacts: Callable[[UUID], list[Artifact]],
    outage: Outage,
    settings: Settings,
    store: ObjectStore,
    engine: Engine,
    tmp_path: Path,
) -> None:
    short = dataclasses.replace(settings, lease_seconds=1.0, heartbeat_seconds=0.3)
    leader_engine = connect_engine(short, application_name="leader", pool_size=1)
    leadership, doorbell, stopping = Leadership(leader_engine), Doorbell(short), threading.Event()
    reconciler = Reconciler(engine=engine, settings=short, store=store, doorbell=doorbell, leadership=leadership)

    def reconcile() -> None:
        while not stopping.wait(0.1):
            try:
                reconciler.round()
            except DependencyDown:
                continue

    thread = threading.Thread(target=reconcile)
    thread.start()
    job = submit("until", plan={"path": tmp_path / "go", "began": tmp_path / "began"})
    start_crew(lease_seconds=1.0, heartbeat_seconds=0.3)
    eventually((tmp_path / "began").exists)
    outage.begin()
    assert not stopping.wait(2.2)
    (tmp_path / "go").touch()
    assert not stopping.wait(0.3)
    outage.end()
    done = ended(job.id, 15.0)
    stopping.set()
    thread.join()
    doorbell.close()
    leadership.give_up()
    leader_engine.dispose()
    assert (done.state, done.attempt, done.epoch) == (State.SUCCEEDED, 1, 1)
    assert len(artifacts(job.id)) == 1


def test_a_worker_whose_connections_are_cut_goes_on(
    start_crew: Callable[..., Crew],
    submit: Submit,
    ended: Callable[..., Job],
    eventually: Eventually,
    outage: Outage,
    tmp_path: Path,
) -> None:
    job = submit("until", plan={"path": tmp_path / "go", "began": tmp_path / "began"})
    start_crew()
    eventually((tmp_path / "began").exists)
    outage.begin()
    outage.end()
    (tmp_path / "go").touch()
    assert ended(job.id).attempt == 1


def test_a_worker_that_lost_its_lease_stops_and_writes_nothing(
    start_crew: Callable[..., Crew],
    submit: Submit,
    get_job: GetJob,
    eventually: Eventually,
    artifacts: Callable[[UUID], list[Artifact]],
    engine: Engine,
    make_worker: Callable[..., UUID],
    tmp_path: Path,
) -> None:
    job = submit("until", plan={"path": tmp_path / "never", "began": tmp_path / "began"})
    crew = start_crew(idle_poll_seconds=60.0)
    eventually((tmp_path / "began").exists)
    other = make_worker()
    with transaction(engine) as conn:
        lapsed = sa.text("now() - interval '1 s'")
        conn.execute(tables.jobs.update().where(tables.jobs.c.id == job.id).values(lease_expires_at=lapsed))
        assert [reaped.id for reaped in queue.reap(conn)] == [job.id]
        taken = queue.claim(conn, other, [worker_handlers.QUEUE], 60.0)
    assert taken is not None
    eventually(lambda: not crew.executor.running, 5.0, "the old worker has let go")
    held = get_job(job.id)
    assert (held.state, held.worker_id, held.epoch) == (State.RUNNING, other, 2)
    assert artifacts(job.id) == []
