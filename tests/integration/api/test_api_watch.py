"""The one watcher of an API process: it wakes whoever waits, with Redis at once and without it soon."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
import redis
import sqlalchemy as sa
from own_redis import Broker
from postgres_outage import Outage
from sqlalchemy import Engine

from api import watch
from api.watch import Waiter, Watcher
from calotype import queue
from calotype.database import connect_engine, transaction
from calotype.doorbell import JOBS_CHANNEL, Doorbell
from calotype.ids import new_id
from calotype.jobs import Job
from calotype.local.process import free_port
from calotype.settings import Settings

#: Longer than anything takes here; no test waits for it.
LONG = 60.0


@pytest.fixture
def make_watcher(engine: Engine) -> Iterator[Callable[[Settings], Watcher]]:
    made: list[Watcher] = []

    def make(settings: Settings) -> Watcher:
        made.append(Watcher(engine, settings))
        return made[-1]

    yield make
    for watcher in made:
        watcher.close()


@pytest.fixture
def watcher(make_watcher: Callable[[Settings], Watcher], settings: Settings) -> Watcher:
    return make_watcher(settings)


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """While Redis is heard nobody looks into the database: what wakes a waiter is Redis."""
    monkeypatch.setattr(watch, "SAFETY_SECONDS", 10 * LONG)


@pytest.fixture
def without_redis(settings: Settings) -> Settings:
    return dataclasses.replace(settings, broker_url=f"redis://127.0.0.1:{free_port()}/0")


@pytest.fixture
def change(engine: Engine) -> Callable[[Job], None]:
    """Ends a job."""

    def cancel(job: Job) -> None:
        with transaction(engine) as conn:
            queue.cancel(conn, job.tenant_id, job.id)

    return cancel


def look(engine: Engine, job: Job, waiter: Waiter) -> None:
    """What every waiting thread does before it waits."""
    waiter.begin()
    with transaction(engine) as conn:
        now = queue.get(conn, job.tenant_id, job.id)
    waiter.saw(watch.Version(now.revision, now.event_seq))


def test_an_announced_job_wakes_its_waiters_and_no_others(
    watcher: Watcher,
    settings: Settings,
    engine: Engine,
    make_job: Callable[..., Job],
    seldom: None,
    eventually: Callable[..., object],
) -> None:
    job, other = make_job(), make_job()
    with watcher.watch(job.id) as one, watcher.watch(job.id) as two, watcher.watch(other.id) as third:
        eventually(lambda: watcher.live)
        time.sleep(0.2)  # the look that follows a subscription
        for waiter, its in ((one, job), (two, job), (third, other)):
            look(engine, its, waiter)
        doorbell = Doorbell(settings)
        doorbell.announce(job.id)
        assert one.wait(LONG) and two.wait(LONG)
        assert not third.wait(0.3)
        doorbell.close()


def test_without_redis_a_change_is_found_by_asking(
    make_watcher: Callable[[Settings], Watcher],
    without_redis: Settings,
    engine: Engine,
    make_job: Callable[..., Job],
    change: Callable[[Job], None],
) -> None:
    watcher, job = make_watcher(without_redis), make_job()
    with watcher.watch(job.id) as waiter:
        look(engine, job, waiter)
        assert not waiter.wait(1.2)
        change(job)
        assert waiter.wait(LONG)
    assert not watcher.live


def test_a_lost_announcement_is_made_up_for(
    watcher: Watcher,
    engine: Engine,
    make_job: Callable[..., Job],
    change: Callable[[Job], None],
    eventually: Callable[..., object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "SAFETY_SECONDS", 1.0)
    job = make_job()
    with watcher.watch(job.id) as waiter:
        eventually(lambda: watcher.live)
        look(engine, job, waiter)
        change(job)
        assert waiter.wait(LONG)


def test_a_job_that_is_gone_wakes_its_waiters(
    make_watcher: Callable[[Settings], Watcher], without_redis: Settings
) -> None:
    with make_watcher(without_redis).watch(new_id()) as waiter:
        assert waiter.wait(LONG)


def test_what_is_no_job_id_is_ignored(
    watcher: Watcher,
    settings: Settings,
    make_job: Callable[..., Job],
    seldom: None,
    eventually: Callable[..., object],
) -> None:
    job = make_job()
    with watcher.watch(job.id) as waiter, redis.Redis.from_url(settings.broker_url or "") as client:
        eventually(lambda: watcher.live)
        for nonsense in ("", "nonsense", b"\xff\xfe"):
            client.publish(JOBS_CHANNEL, nonsense)
        client.publish(JOBS_CHANNEL, str(job.id))
        waiter.begin()
        client.publish(JOBS_CHANNEL, str(job.id))
        assert waiter.wait(LONG)


def test_many_waiters_are_one_query(
    without_redis: Settings,
    settings: Settings,
    make_job: Callable[..., Job],
) -> None:
    engine = connect_engine(settings, application_name="counted")
    watcher = Watcher(engine, without_redis)
    asked: list[str] = []
    jobs = [make_job() for _ in range(40)]
    with ExitStack() as waits:
        waiters = [waits.enter_context(watcher.watch(job.id)) for job in jobs for _ in range(2)]
        for job, waiter in zip([job for job in jobs for _ in range(2)], waiters, strict=True):
            look(engine, job, waiter)
        sa.event.listen(engine, "before_cursor_execute", lambda _c, _cur, statement, *_: asked.append(statement))
        began = time.monotonic()
        with ThreadPoolExecutor(len(waiters)) as pool:
            list(pool.map(lambda waiter: waiter.wait(3.0), waiters))
        rounds = (time.monotonic() - began) / watch.POLL_SECONDS
    watcher.close()
    engine.dispose()
    about_jobs = [statement for statement in asked if "FROM jobs" in statement]
    assert 1 <= len(about_jobs) <= rounds + 1


def test_when_nobody_waits_nobody_asks(
    make_watcher: Callable[[Settings], Watcher], without_redis: Settings, engine: Engine, make_job: Callable[..., Job]
) -> None:
    watcher, job = make_watcher(without_redis), make_job()
    asked: list[str] = []
    with watcher.watch(job.id):
        pass
    time.sleep(2 * watch.POLL_SECONDS)
    sa.event.listen(engine, "before_cursor_execute", lambda _c, _cur, statement, *_: asked.append(statement))
    time.sleep(3 * watch.POLL_SECONDS)
    assert asked == []


def test_an_outage_of_postgres_is_waited_out(
    make_watcher: Callable[[Settings], Watcher],
    without_redis: Settings,
    engine: Engine,
    database_url: str,
    make_job: Callable[..., Job],
    change: Callable[[Job], None],
) -> None:
    watcher, job, outage = make_watcher(without_redis), make_job(), Outage(database_url)
    with watcher.watch(job.id) as waiter:
        look(engine, job, waiter)
        outage.begin()
        assert not waiter.wait(1.5)
        outage.end()
        change(job)
        assert waiter.wait(LONG)


# --- A Redis of its own ---


def awake_through(
    watcher: Watcher, engine: Engine, job: Job, bell: Doorbell, eventually: Callable[..., object]
) -> None:
    """Announcements arrive."""
    eventually(lambda: watcher.live, timeout=30)
    time.sleep(0.2)
    with watcher.watch(job.id) as waiter:
        look(engine, job, waiter)
        bell.announce(job.id)
        assert waiter.wait(LONG)


def test_waiting_outlives_any_mischief_of_redis(
    broker: Broker,
    settings: Settings,
    engine: Engine,
    make_watcher: Callable[[Settings], Watcher],
    make_job: Callable[..., Job],
    change: Callable[[Job], None],
    seldom: None,
    eventually: Callable[..., object],
) -> None:
    own = dataclasses.replace(settings, broker_url=broker.url)
    watcher, bell, job = make_watcher(own), Doorbell(own), make_job()
    with watcher.watch(make_job().id):
        awake_through(watcher, engine, job, bell, eventually)

        with redis.Redis.from_url(broker.url) as client:
            client.flushall()
        awake_through(watcher, engine, job, bell, eventually)

        broker.kill()
        eventually(lambda: not watcher.live, timeout=30)
        with watcher.watch(job.id) as waiter:
            look(engine, job, waiter)
            change(job)
            assert waiter.wait(LONG)
        broker.start()
        awake_through(watcher, engine, job, bell, eventually)

        # It accepts connections and answers nothing.
        broker.freeze(True)
        eventually(lambda: not watcher.live, timeout=30)
        other = make_job()
        with watcher.watch(other.id) as waiter:
            look(engine, other, waiter)
            change(other)
            assert waiter.wait(LONG)
        broker.freeze(False)
        awake_through(watcher, engine, job, bell, eventually)
    bell.close()


def test_a_black_hole_is_never_taken_for_redis(
    settings: Settings,
    engine: Engine,
    make_watcher: Callable[[Settings], Watcher],
    make_job: Callable[..., Job],
    change: Callable[[Job], None],
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        hole = dataclasses.replace(settings, broker_url=f"redis://127.0.0.1:{listener.getsockname()[1]}/0")
        watcher, job = make_watcher(hole), make_job()
        with watcher.watch(job.id) as waiter:
            look(engine, job, waiter)
            assert not waiter.wait(1.0)
            change(job)
            assert waiter.wait(LONG)
        assert not watcher.live
        watcher.close()


def test_a_stopped_watcher_wakes_everybody_now_and_later(watcher: Watcher, make_job: Callable[..., Any]) -> None:
    job_id: UUID = make_job().id
    with ThreadPoolExecutor(4) as pool, ExitStack() as waits:
        waiters = [waits.enter_context(watcher.watch(job_id)) for _ in range(4)]
        woken = [pool.submit(waiter.wait, LONG) for waiter in waiters]
        watcher.stop()
        assert all(one.result(LONG) for one in woken)
    with watcher.watch(job_id) as late:
        assert late.wait(LONG)
