"""What a claim costs Postgres on a table that it knows nothing about yet, as after an installation or a restore."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from queue_floor import GENERATE, Floor
from sqlalchemy import Engine

from calotype import queue
from calotype.queue import Claimant
from calotype.tenants import Tenant

WAITING = 1_000
#: Rows of jobs that all statements of a claim may touch together; each job once for every other would be a million.
MOST_ROWS = 3 * WAITING


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


def _rows_of_jobs(plan: dict[str, Any]) -> float:
    """Rows of the table that the plan's scans touched, those that a filter threw away included."""
    scans = (node for node in _nodes(plan) if node.get("Relation Name") == "jobs")
    return sum((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"] for node in scans)


def _statements_of_a_claim(conn: sa.Connection, claimant: Claimant) -> list[tuple[str, Any]]:
    seen: list[tuple[str, Any]] = []

    def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if "SAVEPOINT" not in statement:
            seen.append((statement, parameters))

    sa.event.listen(conn, "before_cursor_execute", note)
    try:
        assert queue.claim_batch(conn, claimant).jobs
    finally:
        sa.event.remove(conn, "before_cursor_execute", note)
    return seen


@pytest.mark.parametrize("most_units", [1, 16])
def test_a_claim_from_a_table_that_was_never_analyzed_looks_at_few_jobs(
    engine: Engine, make_worker: Callable[..., UUID], make_tenant: Callable[..., Tenant], most_units: int
) -> None:
    claimant = Claimant(worker_id=make_worker(), queues=(GENERATE,), lease_seconds=600.0, most_units=most_units)
    floor = Floor(engine, claimant)
    floor.submit(make_tenant(), WAITING, batch_key="alike", batch_limit=16)
    floor.submit(make_tenant(), batch_key="other")
    with engine.connect() as conn:
        conn.execute(sa.text("DELETE FROM pg_statistic WHERE starelid = 'jobs'::regclass"))
        statements = _statements_of_a_claim(conn, claimant)
        conn.rollback()
        rows = 0.0
        for statement, parameters in statements:
            explained = conn.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
            rows += _rows_of_jobs(explained[0]["Plan"])
        conn.rollback()
    assert rows <= MOST_ROWS
