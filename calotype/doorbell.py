"""What is said through Redis: "this queue has work", a Celery message, and "this job changed", a published id.

Postgres is the truth; a lost, late or doubled word is harmless. Saying it must therefore never delay or fail anybody:
:meth:`Doorbell.ring` and :meth:`Doorbell.announce` only mark the queue or the job, and a background thread sends one
message for however many marks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from calotype.settings import Settings

logger = logging.getLogger(__name__)

CELERY_TASK_NAME = "calotype.doorbell"
#: Where the ids of jobs that changed are published.
JOBS_CHANNEL = "calotype:jobs"
#: Seconds after which a broker that does not answer is given up on.
SOCKET_TIMEOUT = 2.0
#: Longest pause between tries while the broker is away.
MAX_PAUSE = 5.0
#: So many rings at once, and so many a second for as long as more are wanted: by then no worker sleeps, and what each
#: ring costs would only slow down whoever submits.
MOST_RINGS, RINGS_A_SECOND = 32, 50.0
#: Jobs that wait to be announced; of those beyond, nothing is said. Whoever listens also looks by itself.
MAX_ANNOUNCED = 10_000


def celery_config(settings: Settings) -> dict[str, Any]:
    """The Celery settings that senders and receivers share."""
    settings.require("broker_url")
    return {
        "broker_url": settings.broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            "socket_keepalive": True,
            "health_check_interval": 10,
            # A ring is worth nothing later: what is not acknowledged need not come again soon.
            "visibility_timeout": 3600,
        },
        "task_ignore_result": True,
        "task_create_missing_queues": True,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }


def redis_client(settings: Settings) -> Redis:
    """A client of the broker that gives up after :data:`SOCKET_TIMEOUT`, once. Connects at first use."""
    settings.require("broker_url")
    return Redis.from_url(
        settings.broker_url or "",
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=SOCKET_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


class _Pace:
    """Lets so many pass at once, and so many a second after that (a token bucket)."""

    def __init__(self, most: int, a_second: float) -> None:
        self._most, self._a_second = most, a_second
        self._left, self._at = float(most), time.monotonic()

    def keep(self, count: int) -> None:
        """Notes that so many have passed; sleeps when they were too many."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._a_second) - count
        self._at = now
        if self._left < 0:
            time.sleep(-self._left / self._a_second)


class Doorbell:
    """Speaks from a thread of its own. One a process; close it at the end."""

    def __init__(self, settings: Settings) -> None:
        self._celery = Celery("calotype", set_as_current=False)
        self._celery.conf.update(celery_config(settings))
        self._redis = redis_client(settings)
        self._queues: set[str] = set()
        self._jobs: set[UUID] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._down = False
        self._pace = _Pace(MOST_RINGS, RINGS_A_SECOND)
        self._thread: threading.Thread | None = None

    def ring(self, queue: str) -> None:
        """Says that ``queue`` has work. Returns at once, whatever the broker does."""
        with self._changed:
            self._queues.add(queue)
            self._wake()

    def announce(self, job_id: UUID) -> None:
        """Says that a job changed, after the commit that changed it. Returns at once, whatever the broker does."""
        with self._changed:
            if len(self._jobs) < MAX_ANNOUNCED:
                self._jobs.add(job_id)
            self._wake()

    def ping(self) -> bool:
        """Whether the broker answers within :data:`SOCKET_TIMEOUT` or so."""
        try:
            with self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=SOCKET_TIMEOUT)
                connection.default_channel.client.ping()
        except (OperationalError, RedisError, OSError):
            return False
        return True

    def close(self, timeout: float = 2.0) -> None:
        """Sends what waits if the broker answers soon, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout)
        self._celery.close()

    def _wake(self) -> None:
        if self._closed:
            return
        if self._thread is None or not self._thread.is_alive():
            # Started late, so that a server may fork after it made its doorbell.
            self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _run(self) -> None:
        # The connection is this thread's: nobody else may close it under its hands.
        with self._redis:
            self._send_all()

    def _send_all(self) -> None:
        pause = 0.1
        while True:
            with self._changed:
                while not (self._queues or self._jobs or self._closed):
                    self._changed.wait()
                if not (self._queues or self._jobs):
                    return
                queues, self._queues = self._queues, set()
                jobs, self._jobs = self._jobs, set()
            # Rings first: a worker waits for them, and for the others only somebody who watches.
            failed = {queue for queue in queues if not self._ring(queue)}
            self._pace.keep(len(queues))
            untold = set() if not failed and self._announce(jobs) else jobs
            if not (failed or untold):
                pause = 0.1
                continue
            with self._changed:
                if self._closed:
                    return
                self._queues |= failed
                if len(self._jobs) + len(untold) <= MAX_ANNOUNCED:
                    self._jobs |= untold
            time.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)

    def _ring(self, queue: str) -> bool:
        return self._try(
            lambda: self._celery.send_task(CELERY_TASK_NAME, queue=queue, ignore_result=True, retry=False, expires=3600)
        )

    def _announce(self, jobs: Collection[UUID]) -> bool:
        def publish() -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in jobs:
                    pipe.publish(JOBS_CHANNEL, str(job_id))
                pipe.execute()

        return not jobs or self._try(publish)

    def _try(self, send: Callable[[], object]) -> bool:
        try:
            send()
        except (OperationalError, RedisError, OSError) as exc:
            if not self._down:
                # Once an outage: everybody looks for changes by himself meanwhile.
                logger.warning("broker away; workers look for work by themselves", extra={"reason": str(exc)})
            self._down = True
            return False
        if self._down:
            logger.info("broker back")
        self._down = False
        return True
