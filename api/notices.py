"""Hearing which jobs changed, from Redis: at once while it is there, and without ever depending on it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID

from redis.client import PubSub
from redis.exceptions import RedisError

from calotype.doorbell import JOBS_CHANNEL, redis_client
from calotype.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds between two looks whether to stop, and two pings when nothing is said.
TICK = 0.5
#: Seconds after which a Redis that does not even answer pings is given up.
SILENCE = 3.0
#: Seconds between two tries to connect: the first, and the longest.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0


class Notices:
    """A thread that subscribes to the announced jobs, again and again until it is closed."""

    def __init__(self, settings: Settings, on_job: Callable[[UUID], None], on_live: Callable[[bool], None]) -> None:
        """``on_job`` is called with each job that changed, ``on_live`` when the subscription begins and ends."""
        self._settings = settings
        self._on_job = on_job
        self._on_live = on_live
        self._live = False
        self._told = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="notices", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout: float = 4.0) -> None:
        """Ends the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            try:
                self._subscribe()
            except (RedisError, OSError) as exc:
                self._tell(exc)
            except Exception:
                logger.exception("hearing of changed jobs failed")
            if self._live:
                pause = FIRST_PAUSE
                self._set_live(False)
            self._closing.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - many processes at one Redis
            pause = min(pause * 2, LONGEST_PAUSE)

    def _subscribe(self) -> None:
        with redis_client(self._settings) as client, client.pubsub() as channel:
            channel.subscribe(JOBS_CHANNEL)
            self._hear(channel)

    def _hear(self, channel: PubSub) -> None:
        heard = time.monotonic()
        while not self._closing.is_set():
            message: dict[str, Any] | None = channel.get_message(timeout=TICK)
            if message is not None:
                heard = time.monotonic()
                self._take(message)
            elif time.monotonic() - heard > SILENCE:
                # Connected and dead: nothing else would notice for hours.
                raise TimeoutError("Redis does not answer")
            else:
                channel.ping()

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            # Only now: a connection alone says nothing about who is at the other end.
            self._set_live(True)
        elif message["type"] == "message":
            try:
                job_id = UUID(message["data"].decode("ascii"))
            except (ValueError, UnicodeDecodeError):
                logger.debug("heard something that is no job id")
                return
            self._on_job(job_id)

    def _set_live(self, live: bool) -> None:
        if live and self._told:
            logger.info("hearing of changed jobs again")
        self._told = self._told and not live
        self._live = live
        self._on_live(live)

    def _tell(self, exc: Exception) -> None:
        # Once an outage.
        if not self._told:
            logger.warning("broker away; looking for changed jobs instead", extra={"reason": str(exc)})
        self._told = True
