"""The statements of a claim. Written as SQL, since their plans must hold at a million waiting jobs.

Three habits keep the plans, also on a table that was never analyzed: what is walked is ordered before it is joined;
each step of a walk is a LATERAL with a LIMIT, which the planner cannot turn into a join over all jobs; and the few jobs
that a walk found are looked up by ``= ANY (ARRAY(…))``, which is worked out once, where ``IN (…)`` may be for each job.
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


def as_seconds(moment: str) -> str:
    """A moment as a number. Not counted from 1970: sums of many such lose the less the smaller they are."""
    return f"date_part('epoch', {moment} - TIMESTAMPTZ '2026-01-01 00:00:00+00')"


#: Virtual time that a tenant was given by now (calotype.scheduling.standing); of a share `s` and its tenant `t`.
GIVEN = f"(s.settled + greatest(s.devices * {as_seconds('now()')} - s.device_starts, 0) / t.weight)"

#: The time that a pool has come to (calotype.scheduling.pool_clock), of `pool_shares` and the row `f` of those that
#: wait and whose turn is next; `line` tells of the shares that compete.
CLOCK = """CASE
    WHEN f.vtime IS NOT NULL THEN least(f.vtime, greatest(f.given, line.given))
    WHEN line.runs THEN line.given
    ELSE coalesce((SELECT max(given) FROM pool_shares), 0) END"""

# Another job could share the call of the job `best`, and both are tried for the first time.
_HAS_ALIKE = f"""best.attempt = 0 AND EXISTS (
    SELECT FROM jobs j WHERE j.batch_key = best.batch_key AND j.queue = best.queue AND j.attempt = 0
        AND j.id <> best.id AND {_RUNNABLE})"""

# The job whose turn it is: the best-ranked one of the tenant with the least virtual time.
#
# `clock` is the time that the pool has come to (calotype.scheduling.pool_clock): where those who come back begin. What
# it would be if the tenant `following`, that sets it, did not wait is `beyond`.
LOOK = sa.text(f"""
WITH {_OPEN},
pool_shares AS MATERIALIZED (
    SELECT s.tenant_id, greatest(s.vtime, {GIVEN}) AS vtime, {GIVEN} AS given, s.running, s.idle, s.lag, s.queues
    FROM shares s JOIN tenants t ON t.id = s.tenant_id WHERE s.pool = :pool),
waiting AS MATERIALIZED (
    SELECT tq.tenant_id, array_agg(tq.queue) AS queues FROM tenant_queues tq JOIN open_queues o ON o.queue = tq.queue
    WHERE tq.tenant_id <> ALL (CAST(:in_vain AS uuid[])) GROUP BY tq.tenant_id),
candidates AS MATERIALIZED (
    SELECT w.tenant_id, w.queues, p.vtime, coalesce(p.given, 0) AS given, coalesce(p.idle, true) AS idle,
        coalesce(p.lag, 0) AS lag, coalesce(p.running, 0) AS running, p.tenant_id IS NOT NULL AS has_share,
        {_ROOM} AS room
    FROM waiting w JOIN tenants t ON t.id = w.tenant_id LEFT JOIN pool_shares p ON p.tenant_id = w.tenant_id),
following AS MATERIALIZED (
    SELECT c.tenant_id, c.vtime, c.given FROM (
        SELECT * FROM candidates WHERE NOT idle AND (room IS NULL OR room > 0)
        ORDER BY vtime, given DESC, tenant_id OFFSET 0) AS c
    CROSS JOIN LATERAL (
        SELECT FROM unnest(c.queues) AS q(queue) CROSS JOIN LATERAL (
            SELECT FROM jobs j WHERE j.queue = q.queue AND j.tenant_id = c.tenant_id AND {_RUNNABLE} LIMIT 1) AS one
        LIMIT 1) AS has_one
    LIMIT 2),
clocks AS MATERIALIZED (
    SELECT places.place, f.tenant_id, {CLOCK} AS vtime
    FROM (SELECT max(given) AS given, bool_or(running > 0) AS runs FROM pool_shares
        WHERE queues && CAST(:queues AS text[])) AS line
    CROSS JOIN generate_series(1, 2) AS places(place)
    LEFT JOIN (SELECT *, row_number() OVER (ORDER BY vtime, given DESC, tenant_id) AS place FROM following) AS f
        ON f.place = places.place),
walk AS MATERIALIZED (
    SELECT c.tenant_id, c.queues, c.has_share, c.room, clock.vtime AS clock, clock.tenant_id AS following,
        others.vtime AS beyond
    FROM candidates c JOIN clocks clock ON clock.place = 1 JOIN clocks others ON others.place = 2
    WHERE c.room IS NULL OR c.room > 0
    ORDER BY CASE WHEN c.idle THEN greatest(c.vtime, clock.vtime - c.lag) ELSE c.vtime END, c.idle DESC,
        coalesce(c.vtime, 0), c.running, c.tenant_id)
SELECT best.*, {_HAS_ALIKE} AS has_alike, walk.has_share, walk.room, walk.clock, walk.following, walk.beyond
FROM walk CROSS JOIN LATERAL (
    SELECT {_SEEN} FROM unnest(walk.queues) AS q(queue) CROSS JOIN LATERAL (
        SELECT * FROM jobs j WHERE j.queue = q.queue AND j.tenant_id = walk.tenant_id AND {_RUNNABLE}
        ORDER BY j.rank, j.id LIMIT 1) AS j
    ORDER BY j.rank, j.id LIMIT 1) AS best
LIMIT 1
""")  # noqa: S608 - fixed texts

# Said by the first look.
_CLOCKS = "CAST(:clock AS float) AS clock, CAST(:following AS uuid) AS following, CAST(:beyond AS float) AS beyond"

# The best-ranked job for a model that the worker has loaded. Only the first few are looked at: when they all belong to
# tenants at their limit, the job whose turn it is may as well be taken.
LOOK_FOR_LOADED = sa.text(f"""
WITH {_OPEN}
SELECT {_SEEN}, true AS has_alike, {_HAS_SHARE}, j.room, {_CLOCKS} FROM (
    SELECT j.*, {_ROOM} AS room FROM unnest(CAST(:loaded AS text[])) AS m(model_key) CROSS JOIN open_queues o
    CROSS JOIN LATERAL (
        SELECT * FROM jobs j WHERE j.model_key = m.model_key AND j.queue = o.queue AND {_RUNNABLE}
            AND j.tenant_id <> ALL (CAST(:in_vain AS uuid[]))
        ORDER BY j.rank, j.id LIMIT :most) AS j
    JOIN tenants t ON t.id = j.tenant_id) AS j
WHERE j.room IS NULL OR j.room > 0
ORDER BY j.rank, j.id LIMIT 1
""")  # noqa: S608 - fixed texts

# What could join a batch, in the order of the ranks.
LOOK_FOR_ALIKE = sa.text(f"""
SELECT {_SEEN}, true AS has_alike, {_HAS_SHARE}, {_ROOM} AS room, {_CLOCKS} FROM (
    SELECT * FROM jobs j WHERE j.batch_key = :batch_key AND j.queue = :queue AND j.attempt = 0 AND j.id <> :first
        AND {_RUNNABLE}
    ORDER BY j.rank, j.id LIMIT :most) AS j
JOIN tenants t ON t.id = j.tenant_id
ORDER BY j.rank, j.id
""")  # noqa: S608 - fixed texts

# A claim waits for a lock for a moment only, so long as a transaction of ours may take: a client that locked a tenant's
# row and does nothing since must not stop the jobs of others. It holds for the rest of the transaction.
_PATIENCE = "patience AS MATERIALIZED (SELECT set_config('lock_timeout', '250ms', true) AS set)"

# Every claim locks in the order of tenants with a limit, then shares, each by id: no two wait for each other in a ring.
# Missing shares are made before, while the claim holds nothing else.
LOCK_SHARES = sa.text(f"""
WITH {_PATIENCE},
limited AS MATERIALIZED (
    SELECT id FROM tenants
    WHERE (SELECT set IS NOT NULL FROM patience) AND id = ANY (CAST(:tenants AS uuid[])) AND max_running IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE)
SELECT tenant_id FROM shares
WHERE (SELECT count(*) FROM limited) >= 0 AND pool = :pool AND tenant_id = ANY (CAST(:tenants AS uuid[]))
ORDER BY tenant_id FOR NO KEY UPDATE
""")  # noqa: S608 - fixed texts

# Those that nobody else has locked; in whatever order, for it waits for none.
LOCK_FREE_SHARES = sa.text("""
WITH limited AS MATERIALIZED (
    SELECT id FROM tenants WHERE id = ANY (CAST(:tenants AS uuid[])) AND max_running IS NOT NULL
    FOR NO KEY UPDATE SKIP LOCKED)
SELECT tenant_id FROM shares s
WHERE pool = :pool AND tenant_id = ANY (CAST(:tenants AS uuid[]))
    AND (tenant_id IN (SELECT id FROM limited)
        OR NOT EXISTS (SELECT FROM tenants t WHERE t.id = s.tenant_id AND t.max_running IS NOT NULL))
FOR NO KEY UPDATE OF s SKIP LOCKED
""")

# Tenants that never ran anything in the pool.
MAKE_SHARES = sa.text(f"""
WITH {_PATIENCE}
INSERT INTO shares (pool, tenant_id, vtime, idle, queues)
SELECT :pool, tenant_id, 0, true, CAST(:queues AS text[])
FROM unnest(CAST(:tenants AS uuid[])) AS u(tenant_id)
WHERE (SELECT set IS NOT NULL FROM patience) ORDER BY tenant_id
ON CONFLICT ON CONSTRAINT shares_pkey DO NOTHING
""")  # noqa: S608 - fixed texts


def _first_of_tenant(most: int) -> str:
    """The tenant's best-ranked jobs, so many of each queue: a user may be canceling the first."""
    return f"""
    SELECT j.id FROM open_queues o CROSS JOIN LATERAL (
        SELECT j.id FROM jobs j WHERE j.queue = o.queue AND j.tenant_id = :tenant_id AND {_RUNNABLE}
        ORDER BY j.rank, j.id LIMIT {most}) AS j"""  # noqa: S608 - fixed texts


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

# Other jobs of the tenant could be claimed by this worker, or by the one that served it before.
_WAITS = """EXISTS (
    SELECT FROM jobs j WHERE j.queue = ANY (s.queues || CAST(:queues AS text[])) AND j.tenant_id = s.tenant_id
        AND j.state = 'queued' AND j.leader_id IS NULL AND j.available_at <= now()
        AND j.id NOT IN (SELECT id FROM taken))"""


def _take(first: str, *, alone: bool) -> sa.TextClause:
    """Moves the first job that ``first`` names and is still to be had, with its batch, and charges the tenants.

    The shares of the tenants are locked. Jobs that somebody else has locked are passed over. A job that is ``alone``
    has a statement of its own, which is planned once and not at every claim.

    Who was idle is raised by what it was not given while the pool's clock moved on, both in what it is charged and in
    what it was given: what it did not use is gone. What it was owed when it became idle stays owed (`lag`). By how much
    jobs that run have taken longer than was charged for them is charged, too, until they end (`overdue`).
    """
    tenants = "t.id = :tenant_id" if alone else "t.id = ANY (CAST(:tenants AS uuid[]))"
    place = "1" if alone else "array_position(CAST(:members AS uuid[]), id)"
    return sa.text(f"""
WITH {_OPEN},
rooms AS MATERIALIZED (
    SELECT t.id AS tenant_id, t.weight, {_ROOM} AS room, own.overdue, own.behind,
        CASE WHEN own.idle THEN greatest(own.behind - own.lag, 0) ELSE 0 END AS raised
    FROM tenants t CROSS JOIN LATERAL (
        SELECT greatest({GIVEN} - s.vtime, 0) AS overdue, s.idle, s.lag,
            CASE WHEN t.id = CAST(:following AS uuid) THEN CAST(:beyond AS float) ELSE CAST(:clock AS float) END
                - {GIVEN} AS behind
        FROM shares s WHERE s.pool = :pool AND s.tenant_id = t.id LIMIT 1) AS own
    WHERE {tenants}),
first AS MATERIALIZED (
    SELECT {_CHOSEN} FROM jobs j
    WHERE j.id = ANY (ARRAY({first})) AND {_RUNNABLE}
        AND (SELECT room IS NULL OR room > 0 FROM rooms WHERE tenant_id = :tenant_id)
    ORDER BY j.rank, j.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED),
members AS MATERIALIZED ({_NOBODY if alone else _MEMBERS}),
chosen AS (SELECT *, 0 AS place FROM first UNION ALL SELECT *, {place} FROM members),
counted AS (SELECT *, row_number() OVER (PARTITION BY tenant_id ORDER BY place) AS nth FROM chosen),
taken AS MATERIALIZED (
    SELECT c.id, c.tenant_id, c.place, CAST(c.units AS float) / sum(c.units) OVER () AS part,
        {_ESTIMATE} / r.weight AS charge, r.room, r.raised, r.overdue, greatest(r.behind - r.raised, 0) AS lag,
        clock_timestamp() AS started_at
    FROM counted c JOIN rooms r ON r.tenant_id = c.tenant_id WHERE r.room IS NULL OR c.nth <= r.room),
charged AS (
    UPDATE shares s SET
        vtime = s.vtime + due.raised + due.overdue + due.charge,
        settled = s.settled + due.raised,
        overdue = s.overdue + due.overdue,
        lag = due.lag,
        running = s.running + due.jobs,
        devices = s.devices + due.parts,
        device_starts = s.device_starts + due.starts,
        -- With nothing waiting, or at its limit, it could not use more, and does not save up time meanwhile.
        idle = coalesce(due.room <= due.jobs, false) OR NOT {_WAITS},
        queues = CAST(:queues AS text[]),
        changed_at = now()
    FROM (SELECT tenant_id, sum(charge) AS charge, count(*) AS jobs, min(room) AS room, min(raised) AS raised,
            min(overdue) AS overdue, min(lag) AS lag, sum(part) AS parts,
            sum(part * {as_seconds("started_at")}) AS starts
        FROM taken GROUP BY tenant_id) AS due
    WHERE s.pool = :pool AND s.tenant_id = due.tenant_id),
-- Whose turn has to wait, for what its jobs that run are charged, is idle no longer: it saves up from now on. Few are,
-- and what is dear is asked of these only.
paused AS MATERIALIZED (
    SELECT pool, tenant_id FROM shares s
    WHERE s.pool = :pool AND s.idle AND s.running > 0 AND s.vtime > CAST(:clock AS float)
        AND s.tenant_id NOT IN (SELECT tenant_id FROM taken)),
back AS (
    UPDATE shares SET vtime = vtime + come.raised, settled = settled + come.raised, idle = false, changed_at = now()
    FROM paused CROSS JOIN LATERAL (
        SELECT greatest(CAST(:clock AS float) - {GIVEN} - s.lag, 0) AS raised
        FROM shares s JOIN tenants t ON t.id = s.tenant_id
        WHERE s.pool = paused.pool AND s.tenant_id = paused.tenant_id AND s.idle AND coalesce({_ROOM} > 0, true)
            AND {_WAITS} LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED) AS come
    WHERE shares.pool = paused.pool AND shares.tenant_id = paused.tenant_id),
moved AS (
    UPDATE jobs j SET
        state = 'running', worker_id = :worker_id, epoch = j.epoch + 1, attempt = j.attempt + 1,
        started_at = taken.started_at, lease_expires_at = clock_timestamp() + :lease, progress = NULL,
        pool = :pool, batch_share = taken.part, charged = taken.charge,
        revision = j.revision + 1, event_seq = j.event_seq + 1
    FROM taken WHERE j.id = taken.id RETURNING j.*, taken.place),
said AS (
    INSERT INTO events (job_id, seq, type, data, created_at)
    SELECT id, event_seq, 'state', jsonb_build_object('state', state, 'attempt', attempt), clock_timestamp() FROM moved)
SELECT * FROM moved ORDER BY place
""")  # noqa: S608 - fixed texts


#: The tenant's best-ranked job, or else the one that was looked at; by whether it is alone.
TAKE_IN_TURN = {alone: _take(_first_of_tenant(2), alone=alone) for alone in (True, False)}
TAKE_SEEN = {alone: _take(_FIRST_SEEN, alone=alone) for alone in (True, False)}
#: When others have locked the first few.
TAKE_FARTHER = _take(_first_of_tenant(1_000), alone=True)
