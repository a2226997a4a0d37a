"""Why a job waits and when it will start, on real rows: each reason once, and what an explanation costs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine

from calotype import explain, queue, tables, workers
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.explain import Code, Explanation
from calotype.jobs import Job, JobError, Kind, Progress
from calotype.tenants import Tenant
from calotype.workers import WorkerState

GENERATE = "diffusion.generate"
BROKEN = JobError(code="dependency_down", title="Dependency down", detail="the store is away", retryable=True)


@pytest.fixture
def explained(engine: Engine) -> Callable[[Job], Explanation]:
    def ask(job: Job) -> Explanation:
        with transaction(engine) as conn:
            return explain.explain(conn, job.tenant_id, job.id)

    return ask


@pytest.fixture
def claim(engine: Engine) -> Callable[[UUID], Job]:
    def take(worker_id: UUID) -> Job:
        with transaction(engine) as conn:
            job = queue.claim(conn, worker_id, [GENERATE], 60.0)
            workers.seen(conn, worker_id, WorkerState.BUSY)
        assert job is not None
        return job

    return take


def codes(found: Explanation) -> list[Code]:
    return [reason.code for reason in found.reasons]


def update(engine: Engine, table: sa.Table, where: sa.ColumnElement[bool], **values: Any) -> None:
    with transaction(engine) as conn:
        assert conn.execute(table.update().where(where).values(**values)).rowcount == 1


# --- Reasons ---


def test_without_a_worker_for_its_queue_a_job_says_so_and_promises_nothing(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    make_idle(("diffusion.train",))

    found = explained(make_job())

    assert codes(found) == [Code.NO_WORKER]
    assert GENERATE in found.reasons[0].detail
    assert found.start is None


def test_with_an_idle_worker_its_turn_is_next_and_it_starts_within_seconds(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    make_idle()

    found = explained(make_job())

    assert codes(found) == [Code.STARTING]
    assert found.position == 1
    assert found.start is not None and found.start.latest is not None
    assert found.start.earliest == found.now
    assert found.start.latest - found.now < timedelta(seconds=10)


def test_a_paused_queue_is_named_with_the_operators_reason(
    engine: Engine, make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[..., Explanation]
) -> None:
    make_idle()
    with transaction(engine) as conn:
        conn.execute(tables.queue_pauses.insert().values(queue=GENERATE, reason="new drivers"))

    found = explained(make_job())

    assert codes(found) == [Code.QUEUE_PAUSED]
    assert "new drivers" in found.reasons[0].detail
    assert found.start is None


def test_a_tenant_at_its_limit_is_told_how_many_run_and_may(
    make_tenant: Callable[..., Tenant],
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    claim: Callable[[UUID], Job],
    explained: Callable[[Job], Explanation],
) -> None:
    limited = make_tenant(max_running=1)
    busy = make_idle(name="one")
    make_idle(name="two")
    make_job(tenant_id=limited.id)
    claim(busy)

    found = explained(make_job(tenant_id=limited.id))

    assert codes(found) == [Code.TENANT_LIMIT]
    assert "1 jobs of your tenant run and 1 may" in found.reasons[0].detail
    assert found.start is not None


def test_jobs_that_go_first_are_counted_ones_own_apart_from_others(
    make_tenant: Callable[..., Tenant],
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    explained: Callable[[Job], Explanation],
) -> None:
    make_idle()
    other = make_tenant()
    for _ in range(3):
        make_job()
    for _ in range(2):
        make_job(tenant_id=other.id)
    make_job(priority=9)
    make_job(priority=0)

    found = explained(make_job())

    assert codes(found) == [Code.BEHIND]
    assert found.own_ahead == 4
    assert found.others_ahead == 2
    assert found.position == 7
    assert "4 of yours" in found.reasons[0].detail and "2 of other tenants" in found.reasons[0].detail


def test_of_a_tenant_that_had_more_only_what_it_is_owed_goes_first(
    engine: Engine,
    make_tenant: Callable[..., Tenant],
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    explained: Callable[[Job], Explanation],
    tenant: Tenant,
) -> None:
    make_idle()
    greedy = make_tenant()
    for _ in range(30):
        make_job(tenant_id=greedy.id)
    for _ in range(2):
        make_job()
    with transaction(engine) as conn:
        rows = [
            {"pool": "default", "tenant_id": owner, "vtime": vtime, "queues": [GENERATE]}
            for owner, vtime in ((greedy.id, 100.0), (tenant.id, 92.0))
        ]
        conn.execute(tables.shares.insert(), rows)

    found = explained(make_job())

    # Two jobs of 5 s bring the tenant to 102: the other is owed 2 s until then, which is one job.
    assert found.own_ahead == 2
    assert found.others_ahead == 1


def test_when_every_worker_is_busy_the_next_in_line_is_told_so_and_when_one_is_free(
    engine: Engine,
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    claim: Callable[[UUID], Job],
    explained: Callable[[Job], Explanation],
) -> None:
    make_job()
    running = claim(make_idle())
    with transaction(engine) as conn:
        progress = Progress(fraction=0.5, step=5, total=10, stage="denoising", eta_seconds=40.0)
        queue.progress(conn, running.id, running.epoch, progress)

    found = explained(make_job())

    assert codes(found) == [Code.WORKERS_BUSY]
    assert found.start is not None and found.start.latest is not None
    assert timedelta(seconds=20) < found.start.earliest - found.now < timedelta(seconds=40)
    assert timedelta(seconds=40) < found.start.latest - found.now < timedelta(seconds=80)


def test_a_worker_that_loads_a_model_is_named_to_the_job_and_to_those_behind_it(
    engine: Engine,
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    claim: Callable[[UUID], Job],
    explained: Callable[[Job], Explanation],
) -> None:
    make_job(model_key="model:a")
    running = claim(make_idle())
    waiting = make_job(model_key="model:a")

    assert codes(explained(running)) == [Code.MODEL_LOADING, Code.RUNNING]
    assert codes(explained(waiting)) == [Code.WORKERS_BUSY, Code.MODEL_LOADING]

    assert running.worker_id is not None
    update(engine, tables.workers, tables.workers.c.id == running.worker_id, loaded_models=["model:a"])
    assert codes(explained(running)) == [Code.RUNNING]
    assert codes(explained(waiting)) == [Code.WORKERS_BUSY]


def test_after_a_failure_the_end_of_the_backoff_is_told(
    engine: Engine,
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    claim: Callable[[UUID], Job],
    explained: Callable[[Job], Explanation],
) -> None:
    make_job()
    job = claim(make_idle())
    with transaction(engine) as conn:
        queue.fail(conn, job.id, job.epoch, BROKEN, retry_in=120.0)

    found = explained(job)

    assert codes(found) == [Code.BACKOFF]
    assert found.start is not None and found.start.earliest == found.job.available_at


def test_a_job_that_waits_for_an_equal_one_names_it(
    engine: Engine, make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[..., Explanation]
) -> None:
    make_idle()
    leader, follower = make_job(), make_job()
    update(engine, tables.jobs, tables.jobs.c.id == follower.id, leader_id=leader.id)

    found = explained(follower)

    assert codes(found) == [Code.WAITS_FOR_EQUAL]
    assert str(leader.id) in found.reasons[0].detail
    assert codes(explained(leader)) == [Code.STARTING]


def test_a_draining_worker_takes_nothing_and_is_named(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    make_idle(name="going", draining=True)

    found = explained(make_job())

    assert codes(found) == [Code.WORKER_DRAINING]
    assert "going" in found.reasons[0].detail
    assert found.start is None


def test_a_worker_that_lives_but_does_not_look_for_work_is_deaf(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    long_ago = sa.func.now() - timedelta(minutes=10)
    make_idle(name="lost-in-thought", started_at=long_ago, looked_at=long_ago)

    found = explained(make_job())

    assert codes(found) == [Code.WORKER_DEAF]
    assert "lost-in-thought" in found.reasons[0].detail and "10 min" in found.reasons[0].detail


def test_a_worker_that_starts_again_and_again_is_told_of(
    engine: Engine,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
    explained: Callable[..., Explanation],
) -> None:
    for _ in range(3):
        worker_id = make_worker((GENERATE,), "short-lived")
        with transaction(engine) as conn:
            workers.retire(conn, worker_id)

    found = explained(make_job())

    assert codes(found) == [Code.NO_WORKER, Code.WORKER_CRASH_LOOPING]
    assert "short-lived" in found.reasons[1].detail


def test_a_job_that_may_expire_before_its_turn_is_warned(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    make_idle()
    for _ in range(20):
        make_job()

    assert codes(explained(make_job(deadline_seconds=30.0))) == [Code.BEHIND, Code.DEADLINE]
    assert codes(explained(make_job(deadline_seconds=86_400.0))) == [Code.BEHIND]


def test_a_running_a_canceling_and_an_ended_job_say_so(
    engine: Engine,
    tenant: Tenant,
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    claim: Callable[[UUID], Job],
    explained: Callable[[Job], Explanation],
) -> None:
    make_job()
    job = claim(make_idle())
    assert codes(explained(job)) == [Code.RUNNING]
    with transaction(engine) as conn:
        queue.cancel(conn, tenant.id, job.id)
    assert codes(explained(job)) == [Code.CANCELING]
    with transaction(engine) as conn:
        queue.acknowledge_cancel(conn, job.id, job.epoch)

    found = explained(job)

    assert codes(found) == [Code.ENDED]
    assert "canceled" in found.reasons[0].detail
    assert (found.position, found.start) == (None, None)


def test_another_tenants_job_is_not_explained(
    engine: Engine, make_tenant: Callable[..., Tenant], make_job: Callable[..., Job]
) -> None:
    job = make_job()
    stranger = make_tenant()
    with transaction(engine) as conn:
        for tenant_id, job_id in ((stranger.id, job.id), (job.tenant_id, uuid4())):
            with pytest.raises(NotFound):
                explain.explain(conn, tenant_id, job_id)


# --- Estimates ---


def test_the_estimate_follows_observed_rates_and_the_number_of_workers(
    engine: Engine, make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[..., Explanation]
) -> None:
    make_idle(name="one")
    with transaction(engine) as conn:
        row = {"queue": GENERATE, "model_key": "", "jobs": 100, "mean": 2.0, "variance": 0.0}
        conn.execute(tables.rates.insert(), [row, {**row, "model_key": "model:a"}])
    for _ in range(10):
        make_job(model_key="model:a", work=30.0)
    last = make_job(model_key="model:a", work=30.0)

    alone = explained(last)
    make_idle(name="two")
    together = explained(last)

    # 600 device-seconds go first.
    assert alone.start is not None and alone.start.latest is not None
    assert alone.start.earliest < alone.now + timedelta(seconds=600) < alone.start.latest
    assert together.start is not None and together.start.latest is not None
    assert together.start.earliest < together.now + timedelta(seconds=300) < together.start.latest
    assert together.start.latest < alone.start.latest


def test_a_job_that_fits_into_a_call_may_start_with_it(
    make_job: Callable[..., Job], make_idle: Callable[..., UUID], explained: Callable[[Job], Explanation]
) -> None:
    make_idle()
    for _ in range(3):
        make_job(batch_key="k", batch_limit=16)

    joins = explained(make_job(batch_key="k", batch_limit=16))
    alone = explained(make_job())

    assert joins.start is not None and joins.start.earliest == joins.now
    assert alone.start is not None and joins.start.latest is not None
    assert joins.own_ahead == 3


# --- Cost ---

_FILL = sa.text("""
INSERT INTO jobs (id, tenant_id, kind, family, queue, model, spec, state, priority, rank, max_attempts, available_at,
    batch_key, model_key)
SELECT gen_random_uuid(), (CAST(:tenants AS uuid[]))[1 + n % :many], 'generate', 'diffusion', 'diffusion.generate',
    'stand-in@1', '{}', 'queued', 5, now() - interval '1 hour' + n * interval '1 millisecond', 3,
    now() - interval '1 hour', 'k', 'm'
FROM generate_series(1, :count) AS n
""")


def _statements(engine: Engine, job: Job) -> list[tuple[str, Any]]:
    """Every statement of one explanation."""
    seen: list[tuple[str, Any]] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append((statement, parameters))

    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        with transaction(engine) as conn:
            explain.explain(conn, job.tenant_id, job.id)
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)
    return [one for one in seen if one[0].lstrip().upper().startswith(("SELECT", "WITH"))]


def test_the_cost_does_not_grow_with_the_number_of_waiting_jobs(
    engine: Engine, make_job: Callable[..., Job], make_idle: Callable[..., UUID], make_tenant: Callable[..., Tenant]
) -> None:
    make_idle(loaded_models=["m"])
    tenants = [make_tenant().id for _ in range(20)]
    mine = make_job(tenant_id=tenants[0], batch_key="k", batch_limit=4, model_key="m")
    make_job(tenant_id=tenants[1], model_key="other")
    few = _statements(engine, mine)
    # Every second one is the tenant's own.
    owners = [owner for other in tenants[1:] for owner in (tenants[0], other)]
    with transaction(engine) as conn:
        conn.execute(_FILL, {"tenants": owners, "many": len(owners), "count": 80_000})
        conn.execute(tables.tenant_queues.insert(), [{"queue": GENERATE, "tenant_id": one} for one in tenants[2:]])
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.execute(sa.text("VACUUM ANALYZE jobs"))

    many = _statements(engine, mine)

    # One more: those ahead are counted by themselves when there are many.
    assert len(few) <= len(many) <= len(few) + 1
    with transaction(engine) as conn:
        for statement, parameters in many:
            plan = conn.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
            for node in _nodes(plan[0]["Plan"]):
                if node.get("Relation Name") == "jobs":
                    assert node["Node Type"] != "Seq Scan", (statement, node)
                    assert node["Actual Rows"] * node["Actual Loops"] <= 20_000, (statement, node)


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


def test_when_more_go_first_than_are_counted_the_end_of_the_interval_is_open(
    engine: Engine,
    tenant: Tenant,
    make_job: Callable[..., Job],
    make_idle: Callable[..., UUID],
    explained: Callable[[Job], Explanation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_idle()
    monkeypatch.setattr("calotype.explain.facts.MOST_AHEAD", 10)
    monkeypatch.setattr("calotype.explain.facts.MOST_COUNTED", 50)
    with transaction(engine) as conn:
        conn.execute(_FILL, {"tenants": [tenant.id], "many": 1, "count": 40})
    counted = explained(make_job(priority=0))
    with transaction(engine) as conn:
        conn.execute(_FILL, {"tenants": [tenant.id], "many": 1, "count": 40})

    found = explained(make_job(priority=0))

    assert (counted.own_ahead, counted.more_ahead) == (40, False)
    assert counted.start is not None and counted.start.latest is not None
    assert (found.own_ahead, found.more_ahead) == (50, True)
    assert found.start is not None and found.start.latest is None
    assert "at least" in found.reasons[0].detail


# --- Quotes ---


def test_a_quote_prices_what_the_device_is_expected_to_need(
    engine: Engine, make_idle: Callable[..., UUID], make_job: Callable[..., Job]
) -> None:
    make_idle()
    with transaction(engine) as conn:
        row = {"queue": GENERATE, "model_key": "model:a", "jobs": 100, "mean": 2.0, "variance": 0.01}
        conn.execute(tables.rates.insert().values(**row))
    job = make_job(model_key="model:a", work=30.0)

    with transaction(engine) as conn:
        priced = explain.quote(conn, job, gpu_hour_usd=3.6)
        free = explain.quote(conn, job, gpu_hour_usd=None)

    assert priced.answered is explain.Answered.RUN
    assert priced.gpu_seconds.latest is not None and priced.usd is not None and priced.usd.latest is not None
    assert priced.gpu_seconds.earliest < 60.0 < priced.gpu_seconds.latest
    assert priced.usd.earliest == pytest.approx(priced.gpu_seconds.earliest / 1000)
    assert priced.wait is not None and priced.wait.earliest == 0.0
    assert free.usd is None


def test_a_job_of_a_kind_that_nothing_is_known_of_is_quoted_within_wide_bounds(
    engine: Engine, make_job: Callable[..., Job]
) -> None:
    job = make_job(kind=Kind.TRAIN)
    with transaction(engine) as conn:
        quoted = explain.quote(conn, job, gpu_hour_usd=None)

    assert quoted.wait is None
    assert quoted.gpu_seconds.latest is not None
    assert quoted.gpu_seconds.earliest * 5 < quoted.gpu_seconds.latest
