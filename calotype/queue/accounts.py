"""What tenants are charged for: virtual time in their pool, usage per day, and rates that estimates rest on.

Rows are locked in one order, jobs before rates before shares before usage, so that two transactions never wait for each
other in a ring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

import sqlalchemy as sa

from calotype import tables
from calotype.jobs import Job, Kind, State
from calotype.queue.rows import Held
from calotype.queue.statements import CLOCK, GIVEN, as_seconds
from calotype.scheduling import Rate, estimate_seconds

#: Key of the rate over all models of a queue.
ANY_MODEL = ""
#: What is to be added to the row of a tenant and queue.
Count = tuple[tuple[UUID, str], Mapping[str, int]]
# An option of a connection: where counts are kept until all jobs are locked.
_USAGE_LAST = "calotype_usage_last"

# A tenant has something that a claim could take.
_WAITS = """EXISTS (
    SELECT FROM jobs j WHERE j.queue = ANY (s.queues) AND j.tenant_id = s.tenant_id
        AND j.state = 'queued' AND j.leader_id IS NULL AND j.available_at <= now())"""

# The time that the pool of a share `a` has come to, whose tenant is idle, for the queues of the worker that served it.
_CLOCK = f"""(
    WITH pool_shares AS MATERIALIZED (
        SELECT s.tenant_id, greatest(s.vtime, {GIVEN}) AS vtime, {GIVEN} AS given, s.running, s.idle, s.queues,
            t.max_running
        FROM shares s JOIN tenants t ON t.id = s.tenant_id WHERE s.pool = a.pool),
    following AS MATERIALIZED (
        SELECT c.vtime, c.given FROM (
            SELECT * FROM pool_shares p WHERE NOT p.idle AND (p.max_running IS NULL OR p.max_running > (
                SELECT sum(r.running) FROM shares r WHERE r.tenant_id = p.tenant_id))
            ORDER BY p.vtime, p.given DESC OFFSET 0) AS c
        CROSS JOIN LATERAL (
            SELECT FROM unnest(a.queues) AS q(queue) CROSS JOIN LATERAL (
                SELECT FROM jobs j WHERE j.queue = q.queue AND j.tenant_id = c.tenant_id AND j.state = 'queued'
                    AND j.leader_id IS NULL AND j.available_at <= now() LIMIT 1) AS one
            WHERE NOT EXISTS (SELECT FROM queue_pauses p WHERE p.queue = q.queue) LIMIT 1) AS has_one
        LIMIT 1)
    SELECT {CLOCK} FROM (SELECT max(given) AS given, bool_or(running > 0) AS runs FROM pool_shares
        WHERE queues && a.queues) AS line
    LEFT JOIN following f ON true)"""  # noqa: S608 - fixed texts

# What jobs that leave their workers change, in the order in which all lock: shares by their keys, then usage.
# The estimate that was charged is replaced by what was measured. A tenant is idle when nothing of it runs in the pool
# and nothing could. One that was idle, at its limit or with nothing waiting beside the job, and could be served again,
# is so from now on: it is raised by what it was not given meanwhile.
_SETTLE = sa.text(f"""
WITH gone AS MATERIALIZED (
    SELECT * FROM unnest(
        CAST(:pools AS text[]), CAST(:tenants AS uuid[]), CAST(:queues AS text[]), CAST(:seconds AS float[]),
        CAST(:charged AS float[]), CAST(:parts AS float[]), CAST(:starts AS timestamptz[]), CAST(:ended AS bigint[]),
        CAST(:images AS bigint[])
    ) AS g(pool, tenant_id, queue, seconds, charged, part, start, ended, images)),
mine AS MATERIALIZED (
    SELECT s.*, t.weight, t.max_running FROM shares s JOIN tenants t ON t.id = s.tenant_id
    WHERE (s.pool, s.tenant_id) IN (SELECT pool, tenant_id FROM gone)
    ORDER BY s.pool, s.tenant_id FOR NO KEY UPDATE OF s),
left_there AS (
    SELECT pool, tenant_id, count(*) AS jobs, sum(g.seconds / m.weight) AS took, sum(g.charged) AS charged,
        sum(greatest(g.seconds / m.weight - g.charged, 0)) AS beyond, sum(g.part) AS parts,
        sum(g.part * {as_seconds("g.start")}) AS starts
    FROM gone g JOIN mine m USING (pool, tenant_id) GROUP BY pool, tenant_id),
-- When nothing runs any more all is settled, and no rounding is carried on.
after AS MATERIALIZED (
    SELECT s.pool, s.tenant_id, s.queues, s.weight, v.vtime, s.overdue - r.repaid AS overdue, s.lag,
        greatest(s.running - l.jobs, 0) AS running,
        CASE WHEN s.running > l.jobs THEN s.settled + l.took ELSE v.vtime END AS settled,
        CASE WHEN s.running > l.jobs THEN s.devices - l.parts ELSE 0 END AS devices,
        CASE WHEN s.running > l.jobs THEN s.device_starts - l.starts ELSE 0 END AS device_starts,
        s.idle, {_WAITS} AS waits,
        s.max_running IS NULL OR s.max_running > (
            SELECT sum(o.running) FROM shares o WHERE o.tenant_id = s.tenant_id) - l.jobs AS has_room
    FROM mine s JOIN left_there l USING (pool, tenant_id)
    CROSS JOIN LATERAL (
        SELECT CASE WHEN s.running > l.jobs THEN least(s.overdue, l.beyond) ELSE s.overdue END AS repaid) AS r
    CROSS JOIN LATERAL (SELECT s.vtime + l.took - l.charged - r.repaid AS vtime) AS v),
raised AS MATERIALIZED (
    SELECT a.pool, a.tenant_id,
        CASE WHEN a.idle AND a.waits AND a.has_room THEN greatest({_CLOCK} - g.given - a.lag, 0) ELSE 0 END AS raised
    FROM after a CROSS JOIN LATERAL (SELECT {GIVEN} AS given FROM (SELECT a.*) AS s, (SELECT a.weight) AS t) AS g),
settled AS (
    UPDATE shares s SET
        running = a.running,
        vtime = a.vtime + r.raised,
        settled = a.settled + r.raised,
        overdue = a.overdue,
        devices = a.devices,
        device_starts = a.device_starts,
        idle = CASE WHEN a.waits THEN a.idle AND NOT a.has_room ELSE a.idle OR a.running = 0 END,
        lag = CASE WHEN a.running = 0 AND NOT a.waits THEN 0 ELSE a.lag END,
        changed_at = now()
    FROM after a JOIN raised r USING (pool, tenant_id)
    WHERE s.pool = a.pool AND s.tenant_id = a.tenant_id RETURNING 1)
INSERT INTO usage (tenant_id, day, queue, jobs, images, gpu_seconds)
SELECT tenant_id, (now() AT TIME ZONE 'UTC')::date, queue, sum(ended), sum(images), sum(seconds)
FROM gone WHERE (SELECT count(*) FROM settled) >= 0 GROUP BY tenant_id, queue ORDER BY tenant_id, queue
ON CONFLICT ON CONSTRAINT usage_pkey DO UPDATE SET
    jobs = usage.jobs + excluded.jobs, images = usage.images + excluded.images,
    gpu_seconds = usage.gpu_seconds + excluded.gpu_seconds
""")  # noqa: S608 - fixed texts

# One row a tenant, day and queue.
_ADD_USAGE = sa.text("""
INSERT INTO usage (tenant_id, day, queue, jobs, cached, images)
VALUES (:tenant_id, (now() AT TIME ZONE 'UTC')::date, :queue, :jobs, :cached, :images)
ON CONFLICT ON CONSTRAINT usage_pkey DO UPDATE SET
    jobs = usage.jobs + excluded.jobs, cached = usage.cached + excluded.cached, images = usage.images + excluded.images
""")

# A tenant that has nothing running or waiting in a pool any more, though no job of it ended there. Whoever has its
# share locked decides by itself.
_NOTE_IDLE = sa.text(f"""
UPDATE shares SET idle = true, lag = 0, changed_at = now() FROM (
    SELECT pool, tenant_id FROM shares s
    WHERE NOT s.idle AND s.running = 0 AND (CAST(:tenant_id AS uuid) IS NULL OR s.tenant_id = :tenant_id)
        AND NOT {_WAITS}
    FOR NO KEY UPDATE SKIP LOCKED) AS left_there
WHERE shares.pool = left_there.pool AND shares.tenant_id = left_there.tenant_id
""")  # noqa: S608 - fixed texts

_LOCK_RATES = sa.text("""
SELECT model_key, jobs, mean, variance FROM rates WHERE queue = :queue AND model_key = ANY (CAST(:keys AS text[]))
ORDER BY model_key FOR NO KEY UPDATE SKIP LOCKED
""")

_WRITTEN = """unnest(
    CAST(:keys AS text[]), CAST(:jobs AS bigint[]), CAST(:means AS float[]), CAST(:variances AS float[])
) AS w(model_key, jobs, mean, variance)"""

# Of rows that are locked.
_UPDATE_RATES = sa.text(f"""
UPDATE rates r SET jobs = w.jobs, mean = w.mean, variance = w.variance, changed_at = now()
FROM {_WRITTEN} WHERE r.queue = :queue AND r.model_key = w.model_key
""")  # noqa: S608 - fixed texts

# Of which nothing is known; one that another job has just made stays as it is.
_INSERT_RATES = sa.text(f"""
INSERT INTO rates (queue, model_key, jobs, mean, variance) SELECT :queue, w.* FROM {_WRITTEN} ORDER BY model_key
ON CONFLICT ON CONSTRAINT rates_pkey DO NOTHING
""")  # noqa: S608 - fixed texts


def settle(conn: sa.Connection, left: Sequence[tuple[Held, Job]]) -> None:
    """Charges jobs that a worker held until now; each as it was under its lock, and as it has become.

    Usage is locked here: what else is to be counted comes after it.
    """
    if not left:
        return
    before, after = [held for held, _ in left], [job for _, job in left]
    values = {
        "pools": [held.job.pool for held in before],
        "tenants": [held.job.tenant_id for held in before],
        "queues": [held.job.queue for held in before],
        "seconds": [held.seconds for held in before],
        "charged": [held.job.charged for held in before],
        "parts": [held.job.batch_share for held in before],
        "starts": [held.job.started_at or held.now for held in before],
        "ended": [int(job.state.terminal) for job in after],
        "images": [_images(job) for job in after],
    }
    conn.execute(_SETTLE, values)


def _images(job: Job) -> int:
    """Made and published."""
    return job.units if job.kind is Kind.GENERATE and job.state is State.SUCCEEDED else 0


def add_usage(conn: sa.Connection, job: Job, *, jobs: int = 1, images: int = 0, cached: int = 0) -> None:
    """Counts a job that ended without a worker, or several like it; ``cached``: those answered from an equal one."""
    count: Count = ((job.tenant_id, job.queue), {"jobs": jobs, "cached": cached, "images": images})
    kept: list[Count] | None = conn.get_execution_options().get(_USAGE_LAST)
    if kept is not None:
        kept.append(count)
    else:
        _write_usage(conn, *count)


@contextmanager
def usage_last(conn: sa.Connection) -> Iterator[list[Count]]:
    """Writes what :func:`add_usage` counts within the block at the block's end: for a transaction of many jobs, which
    locks more of them when it has counted some.

    Gives what was counted so far. Who rolls back to a savepoint takes out of it what was counted since.
    """
    kept: list[Count] = []
    conn.execution_options(**{_USAGE_LAST: kept})
    try:
        yield kept
    finally:
        conn.execution_options(**{_USAGE_LAST: None})
    sums: dict[tuple[UUID, str], Counter[str]] = {}
    for place, counts in kept:
        sums.setdefault(place, Counter()).update(counts)
    for place in sorted(sums):
        _write_usage(conn, place, sums[place])


def _write_usage(conn: sa.Connection, place: tuple[UUID, str], counts: Mapping[str, int]) -> None:
    tenant_id, queue = place
    conn.execute(_ADD_USAGE, {"tenant_id": tenant_id, "queue": queue, **counts})


def note_idle(conn: sa.Connection, tenant_id: UUID | None = None) -> None:
    """Marks shares whose tenant has nothing left there; of all tenants when None."""
    conn.execute(_NOTE_IDLE, {"tenant_id": tenant_id})


def observe(conn: sa.Connection, job: Job, seconds: float) -> None:
    """Learns from a job that succeeded in one go how long such jobs take; ``seconds`` are device-seconds.

    Rates that another job is teaching at this moment are left to it: jobs of one queue do not wait for each other's
    commits for the sake of a statistic.
    """
    per_work = seconds / job.work
    keys = sorted({job.model_key or ANY_MODEL, ANY_MODEL})
    rows = conn.execute(_LOCK_RATES, {"queue": job.queue, "keys": keys}).mappings()
    known = {row["model_key"]: _rate(row).observe(per_work) for row in rows}
    _write_rates(conn, _UPDATE_RATES, job.queue, known)
    if len(known) < len(keys):
        # Not what was passed over above: inserting that would wait for the one who has it, a deadlock in the making.
        first = Rate(jobs=1, mean=per_work, variance=0.0)
        missing = [key for key in keys if rate(conn, job.queue, key) is None]
        _write_rates(conn, _INSERT_RATES, job.queue, dict.fromkeys(missing, first))


def rate(conn: sa.Connection, queue: str, model_key: str) -> Rate | None:
    """What is known of the jobs of a queue and model; None when nothing is."""
    table = tables.rates
    row = conn.execute(sa.select(table).where(table.c.queue == queue, table.c.model_key == model_key)).mappings()
    found = row.one_or_none()
    return _rate(found) if found is not None else None


def estimate(conn: sa.Connection, job: Job) -> float:
    """Device-seconds that a job will take, by :func:`calotype.scheduling.estimate_seconds`."""
    table = tables.rates
    keys = [job.model_key or ANY_MODEL, ANY_MODEL]
    statement = sa.select(table).where(table.c.queue == job.queue, table.c.model_key.in_(keys))
    found = {row["model_key"]: _rate(row) for row in conn.execute(statement).mappings()}
    return estimate_seconds(job.work, job.kind, [found.get(key) for key in keys])


def _rate(row: sa.RowMapping) -> Rate:
    return Rate(jobs=row["jobs"], mean=row["mean"], variance=row["variance"])


def _write_rates(conn: sa.Connection, statement: sa.TextClause, queue: str, rates: Mapping[str, Rate]) -> None:
    if rates:
        columns = {
            "keys": list(rates),
            "jobs": [one.jobs for one in rates.values()],
            "means": [one.mean for one in rates.values()],
            "variances": [one.variance for one in rates.values()],
        }
        conn.execute(statement, {"queue": queue, **columns})
