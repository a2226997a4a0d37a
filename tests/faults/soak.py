"""`python -m tests.faults.soak --minutes 5 --jobs 500`: submits jobs while everything is killed at random, then counts.

Three workers that share calls, two reconcilers, an API, Postgres, Redis and the object store run on this machine, and
are killed, frozen, stopped, cut off and flushed, one every second or two. Clients repeat what was not answered, with
the same idempotency key. Afterwards every job must have ended exactly once, with exactly one published result unless it
was canceled. Exit status 1 if anything is lost or doubled.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import httpx
from sqlalchemy import Engine

from calotype import tenants
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, migrate, transaction
from calotype.jobs import Job, State
from calotype.local.process import free_port
from calotype.settings import Settings
from tests.faults import small_model
from tests.faults.accounting import Accounts
from tests.faults.chaos import Chaos, Fleet
from tests.faults.processes import Processes
from tests.faults.servers import Servers, make_servers

#: How long the jobs may take to end once everything runs again.
SETTLE_SECONDS = 240.0
#: One in so many jobs is canceled by its owner.
CANCEL_EVERY = 20
TENANTS = 3
#: Kills cost attempts; here none may fail for want of them.
MOST_ATTEMPTS = 20


@dataclasses.dataclass
class Clients:
    """Submit jobs through the API, and repeat each request until it is answered."""

    url: str
    keys: Sequence[str]
    chance: random.Random
    made: list[UUID] = dataclasses.field(default_factory=list)
    canceled: set[UUID] = dataclasses.field(default_factory=set)
    repeated: int = 0
    _over: threading.Event = dataclasses.field(default_factory=threading.Event)

    def run(self, jobs: int, seconds: float) -> None:
        """Submit `jobs` jobs, spread over so many seconds; goes on until all are answered, or `stop`."""
        began = time.monotonic()
        with httpx.Client(trust_env=False, timeout=httpx.Timeout(10.0)) as client:
            for number in range(jobs):
                self._over.wait(max(0.0, began + seconds * number / jobs - time.monotonic()))
                headers = {"Authorization": f"Bearer {self.chance.choice(self.keys)}"}
                seconds_of_work = self.chance.choice([0.05, 0.3, 1.0, 3.0])
                body = {**small_model.request("share", seconds=seconds_of_work), "max_attempts": MOST_ATTEMPTS}
                answer = self._insist(client, "/v1/jobs", headers | {"Idempotency-Key": f"job-{number}"}, body)
                if answer is None:
                    return
                self.made.append(UUID(answer["id"]))
                if number % CANCEL_EVERY == 0:
                    self._insist(client, f"/v1/jobs/{answer['id']}/cancel", headers, None)
                    self.canceled.add(self.made[-1])

    def stop(self) -> None:
        self._over.set()

    def _insist(
        self, client: httpx.Client, path: str, headers: dict[str, str], body: dict[str, object] | None
    ) -> dict[str, str] | None:
        while not self._over.is_set():
            try:
                answer = client.post(f"{self.url}{path}", json=body, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 300:
                found: dict[str, str] = answer.json()
                return found
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                raise AssertionError(f"{path}: {answer.status_code} {answer.text}")
            self.repeated += 1
            self._over.wait(0.2)
        return None


def soak(minutes: float, jobs: int, seed: int, folder: Path) -> int:
    """Run it; returns the exit status."""
    servers = make_servers(folder / "servers")
    processes = None
    try:
        settings = _settings(servers, folder)
        engine, store, keys = _prepare(settings)
        processes = Processes(settings, folder)
        fleet = Fleet(processes, port=free_port())
        fleet.start_all()
        clients = Clients(f"http://127.0.0.1:{fleet.port}", keys, random.Random(seed))
        chaos = Chaos(fleet, servers, random.Random(seed + 1))
        until = time.monotonic() + 60 * minutes
        submitting = threading.Thread(target=clients.run, args=(jobs, 54 * minutes), daemon=True)
        submitting.start()
        chaos.run(until)
        accounts = Accounts(engine, store, processes.beginnings)
        _watch(fleet, lambda: not submitting.is_alive(), SETTLE_SECONDS / 2)
        clients.stop()
        submitting.join()
        _watch(fleet, lambda: not accounts.open_jobs(clients.made), SETTLE_SECONDS)
        return _count(accounts, clients, chaos, jobs)
    finally:
        if processes is not None:
            processes.stop()
        servers.stop()


def _watch(fleet: Fleet, done: Callable[[], bool], seconds: float) -> None:
    """Keep everything up until it is done, or time is."""
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        fleet.start_all()
        time.sleep(0.5)


def _settings(servers: Servers, folder: Path) -> Settings:
    servers.postgres.service.ensure_database()
    s3 = servers.s3.service
    return Settings(
        database_url=servers.postgres.service.url(),
        broker_url=servers.redis.service.url,
        s3_endpoint=s3.endpoint,
        s3_access_key=s3.access_key,
        s3_secret_key=s3.secret_key,
        s3_bucket="soak",
        lease_seconds=5.0,
        heartbeat_seconds=1.0,
        cancel_poll_seconds=0.5,
        idle_poll_seconds=1.0,
        reconcile_seconds=0.5,
        retry_seconds=0.5,
        shutdown_seconds=5.0,
        cache_dir=folder / "cache",
        data_dir=folder / "data",
        device="cpu",
        log_format="text",
    )


def _prepare(settings: Settings) -> tuple[Engine, ObjectStore, list[str]]:
    """Tables, a bucket, a model, and the keys of some tenants."""
    engine, store = connect_engine(settings, application_name="soak"), ObjectStore(settings)
    migrate(engine)
    store.ensure_bucket()
    small_model.register(engine, store)
    with transaction(engine) as conn:
        owners = [tenants.create_tenant(conn, f"tenant-{number}") for number in range(TENANTS)]
        return engine, store, [tenants.create_key(conn, owner)[1] for owner in owners]


def _count(accounts: Accounts, clients: Clients, chaos: Chaos, wanted: int) -> int:
    problems = []
    try:
        accounts.settle(
            clients.made,
            states=(State.SUCCEEDED, State.CANCELED),
            attempts=range(MOST_ATTEMPTS + 1),
            reruns=MOST_ATTEMPTS,
            splits=1,
            timeout=1.0,
        )
    except AssertionError as exc:
        problems.append(str(exc).splitlines()[0])
    found = accounts.jobs()
    if len(clients.made) != wanted or len(set(clients.made)) != wanted:
        problems.append(f"{len(set(clients.made))} jobs were made of {wanted} requests")
    uncalled = [job.id for job in found.values() if job.state is State.CANCELED and job.id not in clients.canceled]
    if uncalled:
        problems.append(f"canceled without being asked: {uncalled}")
    _print(_rows(accounts, found, clients, chaos, wanted), problems)
    return 1 if problems else 0


def _rows(
    accounts: Accounts, found: dict[UUID, Job], clients: Clients, chaos: Chaos, wanted: int
) -> list[tuple[str, object]]:
    """What the table shows: a name and a figure each."""
    ends = Counter(job.state for job in found.values())
    runs = [len(accounts.begun(job_id)) for job_id in found]
    return [
        *((f"fault: {name}", count) for name, count in sorted(chaos.done.items())),
        ("faults in all", sum(chaos.done.values())),
        ("requests repeated by clients", clients.repeated),
        ("jobs asked for", wanted),
        ("jobs made", len(found)),
        *((f"ended: {state}", ends[state]) for state in State if state.terminal and ends[state]),
        ("lost (no row, or no end)", len(set(clients.made) - {job.id for job in found.values() if job.state.terminal})),
        ("begun once", sum(count == 1 for count in runs)),
        ("begun again after a fault", sum(count > 1 for count in runs)),
        ("most attempts charged to a job", max((job.attempt for job in found.values()), default=0)),
        ("claims in all", sum(job.epoch for job in found.values())),
    ]


def _print(rows: Sequence[tuple[str, object]], problems: Sequence[str]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        sys.stdout.write(f"{name:<{width}}  {value:>6}\n")
    for problem in problems:
        sys.stdout.write(f"WRONG: {problem}\n")
    sys.stdout.write("something is lost or doubled\n" if problems else "nothing lost, nothing doubled\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long things are broken")
    parser.add_argument("--jobs", type=int, default=500, help="how many are submitted meanwhile")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and the jobs; drawn when not given")
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where")
    options = parser.parse_args(arguments)
    seed = random.randrange(2**31) if options.seed is None else options.seed
    # Not below a private folder: an unprivileged Postgres must be able to enter.
    folder = Path(tempfile.mkdtemp(prefix="calotype-soak-"))
    folder.chmod(0o711)
    sys.stdout.write(f"{options.jobs} jobs, {options.minutes:g} minutes of faults, seed {seed}\n")
    sys.stdout.flush()
    try:
        return soak(options.minutes, options.jobs, seed, folder)
    finally:
        if options.keep:
            sys.stdout.write(f"logs: {folder}\n")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
