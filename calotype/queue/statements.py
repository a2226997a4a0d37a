"""The statements of a claim. Written as SQL, since their plans must hold at a million waiting jobs.

Two habits keep the plans: what is walked is ordered before it is joined, and each step of a walk is a LATERAL with a
LIMIT, which the planner cannot turn into a join over all jobs.
"""

from __future__ import annotations

import sqlalchemy as sa

from calotype.scheduling import UNKNOWN_SECONDS

# May run now. A deadline is for the first start only; a follower waits for its leader's result.
_RUNNABLE = """j.state = 'queued' AND j.leader_id IS NULL AND j.available_at <= now()
    AND (j.expires_at IS NULL OR j.expires_at > now() OR j.started_at IS NOT NULL)"""

# The queues of this worker that are not paused, unless an operator drains the worker.
_OPEN = """open_queues AS MATERIALIZED (
    SELECT q.queue FROM unnest(CAST(:queues AS text[])) AS q(queue)
    WHERE NOT EXISTS (SELECT FROM queue_pauses p WHERE p.queue = q.queue)
        AND NOT EXISTS (SELECT FROM workers w WHERE w.id = :worker_id AND w.draining))"""

# How many more jobs of a tenant may run, in all pools together; NULL: no limit.
_ROOM = """CASE WHEN t.max_running IS NOT NULL THEN t.max_running - (
    SELECT coalesce(sum(s.running), 0) FROM shares s WHERE s.tenant_id = t.id) END"""

# What a claim must know of a job.
_SEEN = "j.id, j.tenant_id, j.queue, j.model_key, j.batch_key, j.units, j.batch_limit, j.attempt"
_HAS_SHARE = "EXISTS (SELECT FROM shares s WHERE s.pool = :pool AND s.tenant_id = j.tenant_id) AS has_share"

# The job whose turn it is: the best-ranked one of the tenant with the least virtual time.
#
# `clock` is the time that the pool has come to (calotype.scheduling.pool_clock): where those who come back begin.
LOOK = sa.text(f"""
WITH {_OPEN},
pool_shares AS MATERIALIZED (
    SELECT tenant_id, vtime, began, running, idle, queues FROM shares WHERE pool = :pool),
waiting AS MATERIALIZED (
    SELECT tq.tenant_id, array_agg(tq.queue) AS queues FROM tenant_queues tq JOIN open_queues o ON o.queue = tq.queue
    WHERE tq.tenant_id <> ALL (CAST(:in_vain AS uuid[])) GROUP BY tq.tenant_id),
candidates AS MATERIALIZED (
    SELECT w.tenant_id, w.queues, p.vtime, coalesce(p.idle, true) AS idle, coalesce(p.running, 0) AS running,
        p.tenant_id IS NOT NULL AS has_share, {_ROOM} AS room
    FROM waiting w JOIN tenants t ON t.id = w.tenant_id LEFT JOIN pool_shares p ON p.tenant_id = w.tenant_id),
clock AS MATERIALIZED (SELECT coalesce(
    (SELECT c.vtime FROM (
        SELECT * FROM candidates WHERE NOT idle AND (room IS NULL OR room > 0) ORDER BY vtime OFFSET 0) AS c
        CROSS JOIN LATERAL (
            SELECT FROM unnest(c.queues) AS q(queue) CROSS JOIN LATERAL (
                SELECT FROM jobs j WHERE j.queue = q.queue AND j.tenant_id = c.tenant_id AND {_RUNNABLE} LIMIT 1) AS one
            LIMIT 1) AS has_one
        LIMIT 1),
    (SELECT max(began) FROM pool_shares WHERE queues && CAST(:queues AS text[]) HAVING bool_or(running > 0)),
    (SELECT max(vtime) FROM pool_shares),
    0) AS vtime),
walk AS MATERIALIZED (
    SELECT c.tenant_id, c.queues, c.has_share, c.room, clock.vtime AS clock FROM candidates c CROSS JOIN clock
    WHERE c.room IS NULL OR c.room > 0
    ORDER BY CASE WHEN c.idle THEN greatest(c.vtime, clock.vtime) ELSE c.vtime END, c.idle DESC, coalesce(c.vtime, 0),
        c.running, c.tenant_id)
SELECT best.*, walk.has_share, walk.room, walk.clock FROM walk CROSS JOIN LATERAL (
    SELECT {_SEEN} FROM unnest(walk.queues) AS q(queue) CROSS JOIN LATERAL (
        SELECT * FROM jobs j WHERE j.queue = q.queue AND j.tenant_id = walk.tenant_id AND {_RUNNABLE}
        ORDER BY j.rank, j.id LIMIT 1) AS j
    ORDER BY j.rank, j.id LIMIT 1) AS best
LIMIT 1
""")  # noqa: S608 - fixed texts

# The best-ranked job for a model that the worker has loaded. Only the first few are looked at: when they all belong to
# tenants at their limit, the job whose turn it is may as well be taken.
LOOK_FOR_LOADED = sa.text(f"""
WITH {_OPEN}
SELECT {_SEEN}, {_HAS_SHARE}, j.room, CAST(:clock AS float) AS clock FROM (
    SELECT j.*, {_ROOM} AS room FROM unnest(CAST(:loaded AS text[])) AS m(model_key) CROSS JOIN open_queues o
    CROSS JOIN LATERAL (
        SELECT * FROM jobs j WHERE j.model_key = m.model_key AND j.queue = o.queue AND {_RUNNABLE}
        ORDER BY j.rank, j.id LIMIT :most) AS j
    JOIN tenants t ON t.id = j.tenant_id) AS j
WHERE j.room IS NULL OR j.room > 0
ORDER BY j.rank, j.id LIMIT 1
""")  # noqa: S608 - fixed texts

# What could join a batch, in the order of the ranks.
LOOK_FOR_ALIKE = sa.text(f"""
SELECT {_SEEN}, {_HAS_SHARE}, {_ROOM} AS room, CAST(:clock AS float) AS clock FROM (
    SELECT * FROM jobs j WHERE j.batch_key = :batch_key AND j.queue = :queue AND j.attempt = 0 AND j.id <> :first
        AND {_RUNNABLE}
    ORDER BY j.rank, j.id LIMIT :most) AS j
JOIN tenants t ON t.id = j.tenant_id
ORDER BY j.rank, j.id
""")  # noqa: S608 - fixed texts

# Every claim locks in the order of tenants with a limit, then shares, each by id: no two wait for each other in a ring.
# Missing shares are made before, while the claim holds nothing else.
LOCK_SHARES = sa.text("""
WITH limited AS MATERIALIZED (
    SELECT id FROM tenants WHERE id = ANY (CAST(:tenants AS uuid[])) AND max_running IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE)
SELECT FROM shares
WHERE pool = :pool AND tenant_id = ANY (CAST(:tenants AS uuid[])) AND (SELECT count(*) FROM limited) >= 0
ORDER BY tenant_id FOR NO KEY UPDATE
""")

# Tenants that never ran anything in the pool.
MAKE_SHARES = sa.text("""
INSERT INTO shares (pool, tenant_id, vtime, idle, queues)
SELECT :pool, tenant_id, 0, true, CAST(:queues AS text[])
FROM unnest(CAST(:tenants AS uuid[])) AS u(tenant_id) ORDER BY tenant_id
ON CONFLICT ON CONSTRAINT shares_pkey DO NOTHING
""")

# The tenant's best-ranked job. Two of each queue are looked at, for a user may be canceling the first.
_FIRST_OF_TENANT = f"""
    SELECT j.id FROM open_queues o CROSS JOIN LATERAL (
        SELECT j.id FROM jobs j WHERE j.queue = o.queue AND j.tenant_id = :tenant_id AND {_RUNNABLE}
        ORDER BY j.rank, j.id LIMIT 2) AS j"""  # noqa: S608 - fixed texts

# The job that was looked at, no other.
_FIRST_SEEN = """
    SELECT j.id FROM jobs j JOIN open_queues o ON o.queue = j.queue WHERE j.id = :first"""

# Device-seconds that it will take (calotype.scheduling.estimate_seconds).
_ESTIMATE = f"""coalesce(
    (SELECT c.work * r.mean FROM rates r WHERE r.queue = c.queue AND r.model_key IN (coalesce(c.model_key, ''), '')
        ORDER BY r.model_key = '' LIMIT 1),
    CASE c.kind {" ".join(f"WHEN '{kind}' THEN {seconds}" for kind, seconds in UNKNOWN_SECONDS.items())} END)"""  # noqa: S608 - fixed texts

_CHOSEN = "j.id, j.tenant_id, j.queue, j.kind, j.model_key, j.units, j.work, j.batch_key"


# Those that were looked at and may still join.
_MEMBERS = f"""
    SELECT {_CHOSEN} FROM first JOIN jobs j ON j.batch_key = first.batch_key
    WHERE first.id = :first AND j.id = ANY (CAST(:members AS uuid[])) AND j.attempt = 0 AND {_RUNNABLE}
    FOR NO KEY UPDATE OF j SKIP LOCKED"""  # noqa: S608 - fixed texts

_NOBODY = "SELECT * FROM first WHERE false"

# The tenant's virtual time, raised to the pool's clock (calotype.scheduling.effective_vtime).
_EFFECTIVE = "CASE WHEN s.idle THEN greatest(s.vtime, :clock) ELSE s.vtime END"


def _take(first: str, *, alone: bool, in_turn: bool) -> sa.TextClause:
    """Moves the first job that ``first`` names and is still to be had, with its batch, and charges the tenants.

    The shares of the tenants are locked. Jobs that somebody else has locked are passed over. A job that is ``alone``
    has a statement of its own, which is planned once and not at every claim.
    """
    tenants = "t.id = :tenant_id" if alone else "t.id = ANY (CAST(:tenants AS uuid[]))"
    place = "1" if alone else "array_position(CAST(:members AS uuid[]), id)"
    # Of those who share the call only the first has its turn; nobody has, when it is passed over for a loaded model.
    began = f"CASE WHEN s.tenant_id = :tenant_id THEN {_EFFECTIVE} ELSE s.began END" if in_turn else "s.began"
    return sa.text(f"""
WITH {_OPEN},
rooms AS MATERIALIZED (SELECT t.id AS tenant_id, t.weight, {_ROOM} AS room FROM tenants t WHERE {tenants}),
first AS MATERIALIZED (
    SELECT {_CHOSEN} FROM jobs j
    WHERE j.id IN ({first}) AND {_RUNNABLE}
        AND (SELECT room IS NULL OR room > 0 FROM rooms WHERE tenant_id = :tenant_id)
    ORDER BY j.rank, j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
members AS MATERIALIZED ({_NOBODY if alone else _MEMBERS}),
chosen AS (SELECT *, 0 AS place FROM first UNION ALL SELECT *, {place} FROM members),
counted AS (SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY place) AS nth FROM chosen),
taken AS MATERIALIZED (
    SELECT c.id, c.tenant_id, c.place, CAST(c.units AS float) / sum(c.units) OVER () AS part,
        {_ESTIMATE} / r.weight AS charge, r.room
    FROM counted c JOIN rooms r ON r.tenant_id = c.tenant_id WHERE r.room IS NULL OR c.nth <= r.room),
charged AS (
    UPDATE shares s SET
        vtime = due.charge + {_EFFECTIVE},
        began = {began},
        running = s.running + due.jobs,
        -- At its limit it waits of its own accord, and does not save up time meanwhile.
        idle = coalesce(due.room <= due.jobs, false),
        queues = CAST(:queues AS text[]),
        changed_at = now()
    FROM (SELECT tenant_id, sum(charge) AS charge, count(*) AS jobs, min(room) AS room FROM taken
        GROUP BY tenant_id) AS due
    WHERE s.pool = :pool AND s.tenant_id = due.tenant_id),
moved AS (
    UPDATE jobs j SET
        state = 'running', worker_id = :worker_id, epoch = j.epoch + 1, attempt = j.attempt + 1,
        started_at = clock_timestamp(), lease_expires_at = clock_timestamp() + :lease, progress = NULL,
        pool = :pool, batch_share = taken.part, charged = taken.charge,
        revision = j.revision + 1, event_seq = j.event_seq + 1
    FROM taken WHERE j.id = taken.id RETURNING j.*, taken.place),
said AS (
    INSERT INTO events (job_id, seq, type, data, created_at)
    SELECT id, event_seq, 'state', jsonb_build_object('state', state, 'attempt', attempt), clock_timestamp() FROM moved)
SELECT * FROM moved ORDER BY place
""")  # noqa: S608 - fixed texts


#: By whether the tenant's best-ranked job is wanted or the one that was looked at, and whether it is alone.
TAKE = {
    (in_turn, alone): _take(_FIRST_OF_TENANT if in_turn else _FIRST_SEEN, alone=alone, in_turn=in_turn)
    for in_turn in (True, False)
    for alone in (True, False)
}
