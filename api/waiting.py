"""Long polls: a request waits for its job, holding a thread but neither its turn nor a database connection."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from uuid import UUID

from api.services import Services
from calotype import queue
from calotype.database import transaction
from calotype.events import Version
from calotype.jobs import Job

logger = logging.getLogger(__name__)


def fetch(services: Services, tenant_id: UUID, job_id: UUID) -> Job:
    """The job as it is now; NotFound when the tenant has no such job."""
    with transaction(services.engine) as conn:
        return queue.get(conn, tenant_id, job_id)


def wait_until(services: Services, job: Job, seconds: float, satisfied: Callable[[Job], bool]) -> Job:
    """Watches ``job`` until ``satisfied``, until ``seconds`` have passed, or until the server stops.

    When no permit for waiting is left for the tenant the job is answered as it is: waiting is a courtesy, and requests
    that do not wait must always find a thread.
    """
    deadline = time.monotonic() + seconds
    with services.waiters.permit(job.tenant_id) as granted:
        logger.debug("waiting", extra={"job": job.id, "seconds": seconds, "granted": granted})
        if not granted or satisfied(job):
            return job
        with services.watcher.watch(job.id) as waiter:
            while not services.stopping.is_set():
                waiter.begin()
                job = fetch(services, job.tenant_id, job.id)
                waiter.saw(Version(job.revision, job.event_seq))
                remaining = deadline - time.monotonic()
                if satisfied(job) or remaining <= 0:
                    break
                with services.turns.aside():
                    waiter.wait(remaining)
    return job
