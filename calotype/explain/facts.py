"""What is known about a waiting job, asked of the database.

A fixed number of statements, each reading a bounded number of rows however many jobs wait: what is behind a LIMIT is
known to be more, not how much more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype.explain.forecast import NOTHING, Load, Work, load_of
from calotype.jobs import Job, Kind
from calotype.queue.statements import GIVEN
from calotype.scheduling import Rate

#: Jobs of the tenant whose work is added up, and that are counted; of more only that there are more is known.
MOST_AHEAD = 2_000
MOST_COUNTED = 20_000
#: Other tenants that are looked at, jobs of each, and jobs that share a batch.
MOST_RIVALS = 200
MOST_OF_RIVAL = 50
MOST_ALIKE = 5_000
#: How far back demand is looked at, and how many ended jobs of that time.
LATELY = timedelta(minutes=15)
MOST_ENDED = 2_000
#: A worker that is there was seen within so many seconds.
SEEN_SECONDS = 60.0
#: A name that registers so often within so long is that of a worker that starts and dies.
LOOP_STARTS = 3
LOOP_TIME = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class ServingWorker:
    """A live worker that serves the job's queue."""

    id: UUID
    name: str
    pool: str
    queues: tuple[str, ...]
    state: str
    draining: bool
    loaded_models: tuple[str, ...]
    #: Seconds since it last asked for work, or since its start when it never did.
    silent_seconds: float


@dataclass(frozen=True, kw_only=True)
class Running:
    """A job that a worker holds."""

    worker_id: UUID
    #: Whether it belongs to the tenant that asks.
    own: bool
    queue: str
    model_key: str | None
    work: Work
    #: Seconds since its claim.
    passed: float
    #: What the worker itself expects; None where it does not say.
    eta_seconds: float | None
    #: Whether it has shown any progress.
    began: bool


@dataclass(frozen=True, kw_only=True)
class Account:
    """A tenant in the pool."""

    tenant_id: UUID
    weight: float
    max_running: int | None
    #: Jobs of it that run, in all pools.
    running: int
    #: None before its first job in the pool.
    vtime: float | None
    idle: bool
    #: What it was owed when it became idle.
    lag: float = 0.0
    #: In the pool: what it was given by now, in virtual time, the queues of the worker that served it last, and how
    #: many of its jobs run.
    given: float = 0.0
    queues: Sequence[str] = ()
    running_here: int = 0
    #: Whether it is on the list of those that may have something waiting for these workers.
    listed: bool = True


#: Work by queue and model, by the tenant that it belongs to where several are asked about.
Works = Mapping[tuple[str, str], Work]


def clock(conn: sa.Connection) -> datetime:
    """The time of the database."""
    now: datetime = conn.execute(sa.select(sa.func.now())).scalar_one()
    return now


def pause_reason(conn: sa.Connection, queue: str) -> str | None:
    """Why the queue is paused; None when it is not."""
    statement = sa.text("SELECT reason FROM queue_pauses WHERE queue = :queue")
    reason: str | None = conn.execute(statement, {"queue": queue}).scalar_one_or_none()
    return reason


_SERVING = sa.text("""
SELECT id, name, pool, queues, state, draining, loaded_models,
    extract(epoch FROM now() - greatest(looked_at, started_at))::float AS silent_seconds
FROM workers WHERE retired_at IS NULL AND seen_at > now() - :seen AND :queue = ANY (queues) ORDER BY name, id
""")


def serving(conn: sa.Connection, queue: str) -> list[ServingWorker]:
    """The live workers of a queue, by name."""
    rows = conn.execute(_SERVING, {"queue": queue, "seen": timedelta(seconds=SEEN_SECONDS)}).mappings()
    return [
        ServingWorker(**{**row, "queues": tuple(row["queues"]), "loaded_models": tuple(row["loaded_models"])})
        for row in rows
    ]


# Each start of a process is a row of its own.
_LOOPING = sa.text("""
SELECT name FROM workers WHERE started_at > now() - :time AND :queue = ANY (queues)
GROUP BY name HAVING count(*) >= :starts ORDER BY name
""")


def looping(conn: sa.Connection, queue: str) -> list[str]:
    """Names of workers of a queue that start again and again."""
    values = {"queue": queue, "time": LOOP_TIME, "starts": LOOP_STARTS}
    return list(conn.execute(_LOOPING, values).scalars())


# The partial index of leases holds the running jobs and no others.
_RUNNING = sa.text("""
SELECT worker_id, tenant_id = :tenant_id AS own, queue, model_key, work, progress IS NOT NULL AS began,
    extract(epoch FROM now() - started_at)::float AS passed, (progress ->> 'eta_seconds')::float AS eta_seconds
FROM jobs WHERE state IN ('running', 'canceling') AND worker_id IS NOT NULL
    AND (worker_id = ANY (:workers) OR tenant_id = :tenant_id)
""")


def running(conn: sa.Connection, tenant_id: UUID, workers: Iterable[UUID]) -> list[Running]:
    """What these workers hold, and what else runs for the tenant."""
    rows = conn.execute(_RUNNING, {"tenant_id": tenant_id, "workers": list(workers)}).mappings()
    return [Running(**{**row, "work": Work(jobs=1, work=row["work"], squares=row["work"] ** 2)}) for row in rows]


_ACCOUNT = f"""
SELECT t.id AS tenant_id, t.weight, t.max_running, greatest(s.vtime, {GIVEN}) AS vtime, coalesce(s.idle, true) AS idle,
    coalesce(s.lag, 0) AS lag, coalesce({GIVEN}, 0) AS given, coalesce(s.queues, ARRAY[]::text[]) AS queues,
    coalesce(s.running, 0) AS running_here,
    (SELECT coalesce(sum(r.running), 0) FROM shares r WHERE r.tenant_id = t.id)::int AS running
"""  # noqa: S608 - fixed texts
_OWN_ACCOUNT = sa.text(f"""
{_ACCOUNT} FROM tenants t LEFT JOIN shares s ON s.tenant_id = t.id AND s.pool = :pool WHERE t.id = :tenant_id
""")
# Those that have or had something for these workers; whose turn may come soon, first.
_ACCOUNTS = sa.text(f"""
{_ACCOUNT}, EXISTS (SELECT FROM tenant_queues q WHERE q.tenant_id = t.id AND q.queue = ANY (:queues)) AS listed
FROM tenants t LEFT JOIN shares s ON s.tenant_id = t.id AND s.pool = :pool
WHERE t.id IN (SELECT tenant_id FROM tenant_queues WHERE queue = ANY (:queues)
    UNION SELECT tenant_id FROM shares WHERE pool = :pool AND (NOT idle OR changed_at > now() - :lately))
ORDER BY idle, vtime NULLS FIRST LIMIT :most
""")  # noqa: S608 - fixed texts


def account(conn: sa.Connection, pool: str, tenant_id: UUID) -> Account:
    """One tenant's."""
    row = conn.execute(_OWN_ACCOUNT, {"pool": pool, "tenant_id": tenant_id}).mappings().one()
    return Account(**row)


def accounts(conn: sa.Connection, pool: str, queues: Sequence[str]) -> list[Account]:
    """Those of the tenants that compete for the pool's workers, at most :data:`MOST_RIVALS`."""
    values = {"pool": pool, "queues": list(queues), "lately": LATELY, "most": MOST_RIVALS}
    return [Account(**row) for row in conn.execute(_ACCOUNTS, values).mappings()]


# Each queue is walked in the order of its index, up to the place of the job.
_AHEAD = sa.text("""
SELECT a.queue, coalesce(a.model_key, '') AS model_key, count(*) AS jobs, sum(a.work) AS work,
    sum(a.work * a.work) AS squares
FROM unnest(CAST(:queues AS text[])) AS q(queue) CROSS JOIN LATERAL (
    SELECT j.queue, j.model_key, j.work FROM jobs j
    WHERE j.queue = q.queue AND j.tenant_id = :tenant_id AND j.state = 'queued' AND j.leader_id IS NULL
        AND (j.rank, j.id) < (:rank, :job_id) AND j.available_at <= now()
    ORDER BY j.rank, j.id LIMIT :most) AS a
GROUP BY 1, 2
""")
_COUNT_AHEAD = sa.text("""
SELECT count(*) FROM unnest(CAST(:queues AS text[])) AS q(queue) CROSS JOIN LATERAL (
    SELECT FROM jobs j
    WHERE j.queue = q.queue AND j.tenant_id = :tenant_id AND j.state = 'queued' AND j.leader_id IS NULL
        AND (j.rank, j.id) < (:rank, :job_id)
    ORDER BY j.rank, j.id LIMIT :most) AS a
""")


def ahead(conn: sa.Connection, job: Job, rank: datetime, queues: Sequence[str]) -> Works:
    """The tenant's own jobs that go first."""
    values = {"queues": list(queues), "tenant_id": job.tenant_id, "rank": rank, "job_id": job.id}
    found = _works(conn.execute(_AHEAD, {**values, "most": MOST_AHEAD}).mappings())
    seen = sum(work.jobs for work in found.values())
    if seen < MOST_AHEAD:
        return found
    counted = conn.execute(_COUNT_AHEAD, {**values, "most": MOST_COUNTED}).scalar_one()
    return _scaled(found, counted / seen, more=counted >= MOST_COUNTED)


_WAITING = sa.text("""
SELECT t.tenant_id, a.queue, coalesce(a.model_key, '') AS model_key, count(*) AS jobs, sum(a.work) AS work,
    sum(a.work * a.work) AS squares
FROM unnest(CAST(:tenants AS uuid[])) AS t(tenant_id) CROSS JOIN unnest(CAST(:queues AS text[])) AS q(queue)
CROSS JOIN LATERAL (
    SELECT j.queue, j.model_key, j.work FROM jobs j
    WHERE j.queue = q.queue AND j.tenant_id = t.tenant_id AND j.state = 'queued' AND j.leader_id IS NULL
        AND j.available_at <= now()
    ORDER BY j.rank, j.id LIMIT :most) AS a
GROUP BY 1, 2, 3
""")


def waiting(conn: sa.Connection, tenants: Sequence[UUID], queues: Sequence[str]) -> dict[UUID, Works]:
    """What each of these tenants has waiting."""
    values = {"tenants": list(tenants), "queues": list(queues), "most": MOST_OF_RIVAL}
    rows: dict[UUID, list[sa.RowMapping]] = {}
    for row in conn.execute(_WAITING, values).mappings():
        rows.setdefault(row["tenant_id"], []).append(row)
    return {tenant_id: _limited(_works(found), MOST_OF_RIVAL) for tenant_id, found in rows.items()}


# Jobs that a call could take with the job or before it, whoever they belong to.
_ALIKE = sa.text("""
SELECT :queue AS queue, coalesce(max(a.model_key), '') AS model_key, count(*) AS jobs, sum(a.work) AS work,
    sum(a.work * a.work) AS squares
FROM (SELECT j.model_key, j.work FROM jobs j
    WHERE j.batch_key = :batch_key AND j.queue = :queue AND j.state = 'queued' AND j.leader_id IS NULL
        AND j.available_at <= now() AND (j.rank, j.id) < (:rank, :job_id)
    ORDER BY j.rank, j.id LIMIT :most) AS a
""")
_SAME_MODEL = sa.text("""
SELECT a.queue, coalesce(a.model_key, '') AS model_key, count(*) AS jobs, sum(a.work) AS work,
    sum(a.work * a.work) AS squares
FROM unnest(CAST(:queues AS text[])) AS q(queue) CROSS JOIN LATERAL (
    SELECT j.queue, j.model_key, j.work FROM jobs j
    WHERE j.model_key = :model_key AND j.queue = q.queue AND j.state = 'queued' AND j.leader_id IS NULL
        AND j.available_at <= now() AND (j.rank, j.id) < (:rank, :job_id)
    ORDER BY j.rank, j.id LIMIT :most) AS a
GROUP BY 1, 2
""")


def alike(conn: sa.Connection, job: Job, rank: datetime) -> Works:
    """Better-ranked jobs that could share its call, of all tenants."""
    values = {"batch_key": job.batch_key, "queue": job.queue, "job_id": job.id, "rank": rank, "most": MOST_ALIKE}
    return _works(row for row in conn.execute(_ALIKE, values).mappings() if row["jobs"])


def same_model(conn: sa.Connection, job: Job, rank: datetime, queues: Sequence[str]) -> Works:
    """Better-ranked jobs for the same model, of all tenants."""
    values = {"model_key": job.model_key, "queues": list(queues), "job_id": job.id, "rank": rank, "most": MOST_ALIKE}
    return _works(conn.execute(_SAME_MODEL, values).mappings())


# The latest first, by the index of ends.
_DEMAND = sa.text("""
SELECT tenant_id, sum(gpu_seconds) AS seconds FROM (
    SELECT tenant_id, gpu_seconds FROM jobs
    WHERE finished_at IS NOT NULL AND finished_at > now() - :lately ORDER BY finished_at DESC LIMIT :most) AS ended
GROUP BY tenant_id
""")


def demand(conn: sa.Connection) -> dict[UUID, float]:
    """Device-seconds per second that each tenant asked for lately."""
    rows = conn.execute(_DEMAND, {"lately": LATELY, "most": MOST_ENDED})
    return {row.tenant_id: row.seconds / LATELY.total_seconds() for row in rows}


_RATES = sa.text("""
SELECT queue, model_key, jobs, mean, variance FROM rates
WHERE (queue, model_key) IN (SELECT * FROM unnest(CAST(:queues AS text[]), CAST(:models AS text[])))
""")


class Rates:
    """The rates that some jobs need, read at once."""

    def __init__(self, conn: sa.Connection, keys: Iterable[tuple[str, str]]) -> None:
        wanted = sorted({key for queue, model in keys for key in ((queue, model), (queue, ""))})
        values = {"queues": [queue for queue, _ in wanted], "models": [model for _, model in wanted]}
        self._known = {
            (row.queue, row.model_key): Rate(jobs=row.jobs, mean=row.mean, variance=row.variance)
            for row in conn.execute(_RATES, values)
        }

    def load(self, works: Works) -> Load:
        """What the jobs will take."""
        loads = (self._load(queue, model, work) for (queue, model), work in works.items())
        return sum(loads, NOTHING)

    def _load(self, queue: str, model: str, work: Work) -> Load:
        kind = Kind(queue.rpartition(".")[2])
        others = self._known.get((queue, ""))
        return load_of(work, kind, self._known.get((queue, model)) if model else others, others)


def _works(rows: Iterable[sa.RowMapping]) -> dict[tuple[str, str], Work]:
    return {(row["queue"], row["model_key"]): _work(row) for row in rows}


def _work(row: Mapping[Any, Any]) -> Work:
    return Work(jobs=row["jobs"], work=row["work"], squares=row["squares"])


def _limited(works: dict[tuple[str, str], Work], most: int) -> Works:
    """Says that there is more where as many were found as were asked for."""
    by_queue: dict[str, int] = {}
    for (queue, _), work in works.items():
        by_queue[queue] = by_queue.get(queue, 0) + work.jobs
    return _scaled(works, 1.0, more=any(jobs >= most for jobs in by_queue.values()))


def _scaled(works: Works, factor: float, *, more: bool) -> Works:
    return {
        key: Work(jobs=round(work.jobs * factor), work=work.work * factor, squares=work.squares * factor, more=more)
        for key, work in works.items()
    }


_RANK = sa.text("SELECT rank FROM jobs WHERE id = :job_id")


def rank(conn: sa.Connection, job: Job) -> datetime:
    """The job's place in the order of its tenant."""
    found: datetime = conn.execute(_RANK, {"job_id": job.id}).scalar_one()
    return found
