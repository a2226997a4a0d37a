"""Random faults, one after the other: something is killed or frozen, is away for a while, and comes back."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import psycopg
import redis

from tests.faults.processes import Processes, Running
from tests.faults.servers import Servers

#: Seconds between two faults, and how long what a fault takes away is away.
PAUSE = (0.5, 2.5)
AWAY = (0.2, 6.0)


@dataclass
class Fleet:
    """The processes of Calotype that a soak keeps up."""

    processes: Processes
    port: int
    #: By the name of its part.
    running: dict[str, Running] = field(default_factory=dict)
    _starts: Counter[str] = field(default_factory=Counter)

    PARTS = ("api", "reconciler-1", "reconciler-2", "worker-1", "worker-2", "worker-3")

    def start_all(self, away: Collection[str] = ()) -> None:
        """Start what has not begun or has ended, as Kubernetes would; but not what is meant to be away."""
        for part in self.PARTS:
            present = self.running.get(part)
            if part not in away and (present is None or present.exit_code is not None):
                self._start(part)

    def _start(self, part: str) -> None:
        self._starts[part] += 1
        name = f"{part}.{self._starts[part]}"
        if part == "api":
            self.running[part] = self.processes.api(name, port=self.port)
        elif part.startswith("reconciler"):
            self.running[part] = self.processes.reconciler(name)
        else:
            self.running[part] = self.processes.worker(name, batch=True)


@dataclass
class Chaos:
    """Breaks things until a deadline, and mends them."""

    fleet: Fleet
    servers: Servers
    chance: random.Random
    #: What was done, and how often.
    done: Counter[str] = field(default_factory=Counter)
    #: Parts that were killed and are not to come back yet.
    _away: set[str] = field(default_factory=set)
    _mending: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def run(self, until: float) -> None:
        """One fault after the other until the monotonic time `until`; several may be in force at once."""
        while time.monotonic() < until:
            self._break_something()
            time.sleep(self.chance.uniform(*PAUSE))
            self._mend(time.monotonic())
            self.fleet.start_all(self._away)
        self._mend(float("inf"))
        self.servers.start()

    def _mend(self, now: float) -> None:
        due = [repair for at, repair in self._mending if at <= now]
        self._mending = [(at, repair) for at, repair in self._mending if at > now]
        for repair in due:
            repair()

    def _break_something(self) -> None:
        faults = [
            (10, self._kill_part),
            (4, self._freeze_part),
            (3, self._stop_part),
            (3, self._kill_server),
            (2, self._freeze_server),
            (2, self._restart_postgres),
            (2, self._terminate_backends),
            (2, self._flush_redis),
        ]
        [fault] = self.chance.choices([fault for _, fault in faults], [weight for weight, _ in faults])
        self.done[fault()] += 1

    def _later(self, repair: Callable[[], None]) -> None:
        self._mending.append((time.monotonic() + self.chance.uniform(*AWAY), repair))

    def _part(self) -> tuple[str, Running]:
        return self.chance.choice(sorted(self.fleet.running.items()))

    def _kill_part(self) -> str:
        part, process = self._part()
        process.kill()
        self._away.add(part)
        self._later(lambda: self._away.discard(part))
        return f"{_kind(part)} killed"

    def _stop_part(self) -> str:
        part, process = self._part()
        process.thaw()
        process.signal(signal.SIGTERM)
        return f"{_kind(part)} told to stop"

    def _freeze_part(self) -> str:
        part, process = self._part()
        process.freeze()
        self._later(process.thaw)
        return f"{_kind(part)} frozen"

    def _kill_server(self) -> str:
        server = self.chance.choice([self.servers.postgres, self.servers.redis, self.servers.s3])
        if not server.up:
            return f"({server.service.name} was away already)"
        server.kill()
        self._later(server.start)
        return f"{server.service.name} killed"

    def _freeze_server(self) -> str:
        server = self.chance.choice([self.servers.redis, self.servers.s3])
        if not server.up:
            return f"({server.service.name} was away already)"
        server.freeze()
        self._later(server.start)
        return f"{server.service.name} frozen"

    def _restart_postgres(self) -> str:
        if not self.servers.postgres.up:
            return "(postgres was away already)"
        self.servers.postgres.stop()
        self._later(self.servers.postgres.start)
        return "postgres stopped"

    def _terminate_backends(self) -> str:
        url = self.servers.postgres.service.url("postgres").replace("+psycopg", "")
        try:
            with psycopg.connect(url, autocommit=True, connect_timeout=2) as connection:
                connection.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
        except psycopg.OperationalError:
            return "(postgres was away already)"
        return "postgres backends terminated"

    def _flush_redis(self) -> str:
        try:
            with redis.Redis.from_url(self.servers.redis.service.url, socket_timeout=1) as client:
                client.flushall()
        except redis.RedisError:
            return "(redis was away already)"
        return "redis flushed"


def _kind(part: str) -> str:
    return part.partition("-")[0]
