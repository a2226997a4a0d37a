"""The doorbell: a Celery message that says "this queue has work", and nothing more.

Postgres is the truth; a lost, late or doubled ring is harmless. Ringing must therefore never delay or fail a request:
:meth:`Doorbell.ring` only marks the queue, and a background thread sends one message for however many marks.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from calotype.settings import Settings

logger = logging.getLogger(__name__)

CELERY_TASK_NAME = "calotype.doorbell"
#: Seconds after which a broker that does not answer is given up on.
SOCKET_TIMEOUT = 2.0
#: Longest pause between tries while the broker is away.
MAX_PAUSE = 5.0


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


class Doorbell:
    """Rings queues from a thread of its own. One a process; close it at the end."""

    def __init__(self, settings: Settings) -> None:
        self._celery = Celery("calotype", set_as_current=False)
        self._celery.conf.update(celery_config(settings))
        self._waiting: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._down = False
        self._thread: threading.Thread | None = None

    def ring(self, queue: str) -> None:
        """Says that ``queue`` has work. Returns at once, whatever the broker does."""
        with self._changed:
            if self._closed:
                return
            self._waiting.add(queue)
            if self._thread is None or not self._thread.is_alive():
                # Started late, so that a server may fork after it made its doorbell.
                self._thread = threading.Thread(target=self._send_all, name="doorbell", daemon=True)
                self._thread.start()
            self._changed.notify()

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

    def _send_all(self) -> None:
        pause = 0.1
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return
                queues, self._waiting = self._waiting, set()
            failed = {queue for queue in queues if not self._send(queue)}
            if not failed:
                pause = 0.1
                continue
            with self._changed:
                if self._closed:
                    return
                self._waiting |= failed
            time.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)

    def _send(self, queue: str) -> bool:
        try:
            self._celery.send_task(CELERY_TASK_NAME, queue=queue, ignore_result=True, retry=False, expires=3600)
        except (OperationalError, RedisError, OSError) as exc:
            if not self._down:
                # Once an outage: the workers look by themselves meanwhile.
                logger.warning("broker away; workers look for work by themselves", extra={"reason": str(exc)})
            self._down = True
            return False
        if self._down:
            logger.info("broker back")
        self._down = False
        return True
