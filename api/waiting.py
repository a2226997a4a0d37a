"""Long polls: a request waits for its job, holding a thread but no database connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from api.services import Services
from calotype import queue
from calotype.database import transaction
from calotype.jobs import Job

logger = logging.getLogger(__name__)

#: Seconds between looks at the row: quick at first, for small jobs, then gentle on the database.
FIRST_INTERVAL = 0.05
LONGEST_INTERVAL = 1.0
GROWTH = 1.3


def fetch(services: Services, tenant_id: UUID, job_id: UUID) -> Job:
    """The job as it is now; NotFound when the tenant has no such job."""
    with transaction(services.engine) as conn:
        return queue.get(conn, tenant_id, job_id)


def wait_until(services: Services, job: Job, seconds: float, satisfied: Callable[[Job], bool]) -> Job:
    """Looks at ``job`` until ``satisfied``, until ``seconds`` have passed, or until the server stops.

    When all permits for waiting are taken the job is answered as it is: waiting is a courtesy, and requests
    that do not wait must always find a thread.
    """
    deadline = time.monotonic() + seconds
    with _permit(services) as granted:
        interval = FIRST_INTERVAL
        logger.debug("waiting", extra={"job": job.id, "seconds": seconds, "granted": granted})
        while granted and not satisfied(job):
            remaining = deadline - time.monotonic()
            if remaining <= 0 or services.stopping.wait(min(interval, remaining)):
                break
            job = fetch(services, job.tenant_id, job.id)
            interval = min(interval * GROWTH, LONGEST_INTERVAL)
    return job


@contextmanager
def _permit(services: Services) -> Iterator[bool]:
    granted = services.waiters.acquire(blocking=False)
    try:
        yield granted
    finally:
        if granted:
            services.waiters.release()
