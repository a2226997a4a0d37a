"""The worker side of the baseline: one Celery task a job. ``celery -A benchmarks.baseline.tasks worker``"""

from __future__ import annotations

import logging
from uuid import UUID

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from benchmarks.baseline import configuration
from benchmarks.baseline.models import Job, now
from benchmarks.standin import Plan, work

log = logging.getLogger(__name__)

app = Celery("baseline", broker=configuration.broker_url())
app.conf.update(
    # A job whose worker dies goes to another one; a busy worker keeps none waiting.
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    # Results are in the database.
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)
# Connects at first use, which is after the fork of a worker's child.
engine = create_engine(configuration.database_url())
sessions = sessionmaker(engine, expire_on_commit=False)


@app.task  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run one job and record how it ended."""
    with sessions() as session:
        job = session.get_one(Job, UUID(job_id))
        job.state, job.started_at = "running", now()
        session.commit()
        try:
            job.result = work(Plan.read(job.spec["input"]["prompt"]))
            job.state = "succeeded"
        except Exception as exc:
            log.exception("job %s failed", job_id)
            job.state, job.error = "failed", str(exc)
        job.finished_at = now()
        session.commit()
