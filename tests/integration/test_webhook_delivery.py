"""Webhooks from the end of a job to the receiver, on a real Postgres and a real HTTP server."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from postgres_outage import Outage
from sqlalchemy import Engine
from webhook_receiver import Answer, Receiver

from calotype import queue, tables
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.errors import NotFound
from calotype.jobs import Job, JobError, State
from calotype.log import JsonFormatter
from calotype.settings import Settings
from calotype.tenants import Tenant
from calotype.webhooks import deliveries, outbox, tenant_secrets, trying
from calotype.webhooks.deliveries import Delivery, DeliveryFilter, DeliveryState
from calotype.webhooks.schedule import DELAYS
from calotype.webhooks.sending import Sender
from calotype.webhooks.signing import new_secret
from calotype.webhooks.targets import AddressPolicy
from worker import deliverer as deliverer_module
from worker.deliverer import PER_HOST, Deliverer, Slots

QUEUE = "diffusion.generate"
SECRET = new_secret()
table = tables.webhook_deliveries
Eventually = Callable[..., Any]


@pytest.fixture
def make_deliverer(settings: Settings) -> Iterator[Callable[..., Deliverer]]:
    """`make_deliverer(seconds=…)`: one that may send to this machine, with connections of its own."""
    made: list[Deliverer] = []

    def make(seconds: float = 5.0, parallel: int = 32) -> Deliverer:
        from calotype.database import connect_engine

        engine = connect_engine(settings, application_name="webhooks", pool_size=4)
        made.append(Deliverer(engine, Sender(AddressPolicy.of("127.0.0.0/8"), seconds=seconds), parallel=parallel))
        return made[-1]

    yield make
    for deliverer in made:
        deliverer.close()


@pytest.fixture
def end_job(engine: Engine, make_job: Callable[..., Job], receiver: Receiver) -> Callable[..., Job]:
    """`end_job(url=…, secret=…, **fields)`: a job with a webhook that was canceled, and so has ended."""

    def end(url: str | None = None, secret: str | None = SECRET, **fields: Any) -> Job:
        webhook = {"url": url or receiver.url, **({"secret": secret} if secret is not None else {})}
        job = make_job(webhook=webhook, **fields)
        with transaction(engine) as conn:
            return queue.cancel(conn, job.tenant_id, job.id)

    return end


@pytest.fixture
def rows(engine: Engine) -> Callable[[], list[Mapping[str, Any]]]:
    """All deliveries, oldest first."""

    def read() -> list[Mapping[str, Any]]:
        with transaction(engine) as conn:
            return [dict(row) for row in conn.execute(sa.select(table).order_by(table.c.id)).mappings()]

    return read


@pytest.fixture
def deliver(eventually: Eventually, rows: Callable[[], list[Mapping[str, Any]]]) -> Callable[..., list[Any]]:
    """`deliver(deliverer)`: sends what is due and waits until it is written down; gives all deliveries."""

    def run(deliverer: Deliverer, expect: int = 1) -> list[Mapping[str, Any]]:
        before = sum(len(row["log"]) for row in rows())
        assert deliverer.look() == expect
        eventually(lambda: sum(len(row["log"]) for row in rows()) == before + expect, timeout=30)
        # Its slot is free again.
        eventually(lambda: deliverer._slots.free == 32)
        return rows()

    return run


def make_due(engine: Engine) -> None:
    """Whatever waits for its next try is due now."""
    with transaction(engine) as conn:
        conn.execute(table.update().where(table.c.state == "pending").values(due_at=sa.func.clock_timestamp()))


def seconds_until_due(engine: Engine) -> float:
    with transaction(engine) as conn:
        left = sa.extract("epoch", table.c.due_at - sa.func.clock_timestamp())
        return float(conn.execute(sa.select(left)).scalar_one())


# --- The outbox ---


def finish(engine: Engine, worker_id: UUID) -> Job:
    with transaction(engine) as conn:
        job = queue.claim(conn, worker_id, [QUEUE], 60.0)
        assert job is not None
        return queue.finish(conn, job.id, job.epoch, queue.Outcome(result={"images": 1}))


def fail(engine: Engine, worker_id: UUID) -> Job:
    error = JobError(code="bad_input", title="Bad input", detail="No.", retryable=False)
    with transaction(engine) as conn:
        job = queue.claim(conn, worker_id, [QUEUE], 60.0)
        assert job is not None
        return queue.fail(conn, job.id, job.epoch, error)


def cancel(engine: Engine, worker_id: UUID) -> Job:
    with transaction(engine) as conn:
        job = queue.claim(conn, worker_id, [QUEUE], 60.0)
        assert job is not None
        queue.cancel(conn, job.tenant_id, job.id)
        return queue.acknowledge_cancel(conn, job.id, job.epoch)


def expire(engine: Engine, _worker_id: UUID) -> Job:
    with transaction(engine) as conn:
        past = sa.text("clock_timestamp() - interval '1 s'")
        conn.execute(tables.jobs.update().values(expires_at=past))
        (job,) = queue.expire(conn)
        return job


@pytest.mark.parametrize("end", [finish, fail, cancel, expire], ids=["succeeded", "failed", "canceled", "expired"])
def test_every_end_of_a_job_is_told_with_what_a_receiver_needs(
    engine: Engine,
    make_job: Callable[..., Job],
    make_worker: Callable[..., UUID],
    rows: Callable[[], list[Mapping[str, Any]]],
    end: Callable[[Engine, UUID], Job],
) -> None:
    make_job(webhook={"url": "https://hooks.example.com/a", "secret": SECRET}, metadata={"order": "7"})
    job = end(engine, make_worker())

    (row,) = rows()
    message = json.loads(row["body"])
    assert (row["state"], row["job_id"], row["host"]) == ("pending", job.id, "hooks.example.com")
    assert row["type"] == message["type"] == f"job.{job.state}"
    data = message["data"]
    assert (data["id"], data["kind"], data["family"], data["model"]) == (
        str(job.id),
        "generate",
        "diffusion",
        "starter-diffusion@1",
    )
    assert (data["state"], data["metadata"]) == (job.state, {"order": "7"})
    assert (data["error"] is not None) == (job.state in (State.FAILED, State.EXPIRED))
    assert message["timestamp"] == data["finished_at"] and message["timestamp"].endswith("Z")
    assert SECRET not in row["body"] and "http" not in row["body"]


def test_a_job_without_a_webhook_is_told_to_nobody(
    engine: Engine, make_job: Callable[..., Job], make_worker: Callable[..., UUID], rows: Callable[[], list[Any]]
) -> None:
    make_job()
    finish(engine, make_worker())
    assert rows() == []


def test_an_end_that_is_rolled_back_is_not_told(
    engine: Engine, make_job: Callable[..., Job], rows: Callable[[], list[Any]]
) -> None:
    job = make_job(webhook={"url": "https://hooks.example.com/"})
    with pytest.raises(RuntimeError), transaction(engine) as conn:
        queue.cancel(conn, job.tenant_id, job.id)
        raise RuntimeError
    assert rows() == []


def test_a_retry_of_a_job_tells_the_same_receiver(
    engine: Engine, end_job: Callable[..., Job], rows: Callable[[], list[Mapping[str, Any]]]
) -> None:
    job = end_job()
    with transaction(engine) as conn:
        again = queue.retry(conn, job.tenant_id, job.id)
        queue.cancel(conn, again.tenant_id, again.id)
    first, second = rows()
    assert (second["job_id"], second["url"], second["secret"]) == (again.id, first["url"], SECRET)
    assert json.loads(second["body"])["data"]["retried_from"] == str(job.id)


# --- Delivery ---


def test_a_delivery_arrives_signed_with_the_secret_of_its_job(
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
) -> None:
    job = end_job()
    (row,) = deliver(make_deliverer())
    (got,) = receiver.received
    assert (row["state"], row["attempts"], row["due_at"]) == ("delivered", 1, None)
    assert (row["log"][0]["status_code"], row["log"][0]["error"]) == (200, None)
    assert got.id == str(row["id"]) and got.body.decode() == row["body"]
    assert got.message["data"]["id"] == str(job.id)
    assert got.signed_by(SECRET)


def test_without_a_secret_of_its_own_the_tenants_signs_and_after_a_rotation_both(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
) -> None:
    job, deliverer = end_job(secret=None), make_deliverer()
    deliver(deliverer)
    with transaction(engine) as conn:
        old = tenant_secrets.get_secret(conn, job.tenant_id)
        new = tenant_secrets.rotate_secret(conn, job.tenant_id)
    end_job(secret=None)
    deliver(deliverer)
    with transaction(engine) as conn:
        conn.execute(tables.tenants.update().values(webhook_secret_rotated_at=sa.text("now() - interval '25 h'")))
    end_job(secret=None)
    deliver(deliverer)

    first, second, third = receiver.received
    assert first.signed_by(old.current) and len(first.headers["webhook-signature"].split(" ")) == 1
    assert second.signed_by(old.current) and second.signed_by(new.current)
    assert third.signed_by(new.current) and not third.signed_by(old.current)


def test_a_secret_that_two_ask_for_at_once_is_made_once(engine: Engine, tenant: Tenant) -> None:
    made: list[str] = []
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait()
        with transaction(engine) as conn:
            made.append(tenant_secrets.get_secret(conn, tenant.id).current)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 and len(set(made)) == 1


def test_a_failed_try_is_repeated_under_the_same_id_with_a_new_timestamp_and_signature(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receiver.answers = [Answer(500, body=b"out of order"), Answer(200)]
    end_job()
    deliverer = make_deliverer()
    (row,) = deliver(deliverer)
    assert (row["state"], row["log"][0]["status_code"], row["log"][0]["answer"]) == ("pending", 500, "out of order")
    assert 3 < seconds_until_due(engine) <= 5 * 1.2
    assert deliverer.look() == 0

    make_due(engine)
    (row,) = deliver(deliverer)
    assert (row["state"], row["attempts"], len(row["log"])) == ("delivered", 2, 2)
    first, second = receiver.received
    assert first.id == second.id and first.body == second.body
    assert first.signed_by(SECRET) and second.signed_by(SECRET)


def test_a_receiver_may_ask_for_a_later_try(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
) -> None:
    receiver.answers = [Answer(429, {"Retry-After": "600"})]
    end_job()
    deliver(make_deliverer())
    assert 590 < seconds_until_due(engine) <= 600


def test_after_the_last_try_a_delivery_is_given_up(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
) -> None:
    receiver.answers = [Answer(500)]
    end_job()
    deliverer = make_deliverer()
    for _ in range(len(DELAYS)):
        (row,) = deliver(deliverer)
        assert row["state"] == "pending"
        make_due(engine)
    (row,) = deliver(deliverer)
    assert (row["state"], row["due_at"], len(receiver.received)) == ("failed", None, len(DELAYS) + 1)


def test_410_stops_all_of_the_tenant_to_that_url_until_a_replay(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_tenant: Callable[..., Tenant],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
    rows: Callable[[], list[Mapping[str, Any]]],
) -> None:
    receiver.answers = [Answer(410), Answer(200)]
    waiting = end_job()
    with transaction(engine) as conn:
        later = sa.text("clock_timestamp() + interval '1 h'")
        conn.execute(table.update().where(table.c.job_id == waiting.id).values(due_at=later))
    gone = end_job()
    deliverer = make_deliverer()
    deliver(deliverer)
    # One was tried, one waited for its turn, one ended afterwards; another URL and another tenant are not concerned.
    after = end_job()
    elsewhere = end_job(url=f"{receiver.url}/other")
    stranger = end_job(tenant_id=make_tenant().id)
    states = {row["job_id"]: row["state"] for row in rows()}
    assert [states[job.id] for job in (gone, waiting, after)] == ["gone"] * 3
    assert [states[job.id] for job in (elsewhere, stranger)] == ["pending"] * 2
    last = next(row for row in rows() if row["job_id"] == after.id)
    assert (last["attempts"], last["log"][0]["error"]) == (0, outbox.STOPPED)

    deliver(deliverer, expect=2)
    assert len(receiver.received) == 3
    with transaction(engine) as conn:
        (delivery,) = deliveries.list_deliveries(conn, gone.tenant_id, DeliveryFilter(job_id=gone.id), None, 10).items
        deliveries.replay(conn, gone.tenant_id, delivery.id)
    deliver(deliverer)
    new = end_job()
    deliver(deliverer)
    states = {row["job_id"]: row["state"] for row in rows()}
    assert [states[job.id] for job in (gone, new)] == ["delivered"] * 2
    assert [states[job.id] for job in (waiting, after)] == ["gone"] * 2


def test_a_replay_begins_a_new_schedule_under_the_same_id(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
) -> None:
    receiver.answers = [Answer(200), Answer(500), Answer(200)]
    job, deliverer = end_job(), make_deliverer()
    (row,) = deliver(deliverer)
    with transaction(engine) as conn:
        replayed = deliveries.replay(conn, job.tenant_id, row["id"])
    assert replayed.state is DeliveryState.PENDING
    deliver(deliverer)
    assert 3 < seconds_until_due(engine) <= 5 * 1.2
    make_due(engine)
    (row,) = deliver(deliverer)
    assert (row["state"], row["attempts"]) == ("delivered", 3)
    assert len({got.id for got in receiver.received}) == 1


# --- What goes wrong on the way ---


def test_a_deliverer_that_dies_between_sending_and_its_commit_is_followed_by_another_try_under_the_same_id(
    engine: Engine,
    database_url: str,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
    rows: Callable[[], list[Mapping[str, Any]]],
    eventually: Eventually,
) -> None:
    end_job()
    outage = Outage(database_url)
    # The message arrives; then Postgres is gone, and what came of it cannot be written down.
    receiver.answers = [Answer(200, before=outage.begin), Answer(200)]
    deliverer = make_deliverer()
    try:
        assert deliverer.look() == 1
        eventually(lambda: deliverer._slots.free == 32, timeout=30)
    finally:
        outage.end()
    (row,) = rows()
    assert (row["state"], row["attempts"], row["log"]) == ("pending", 1, [])
    assert 0 < seconds_until_due(engine) <= deliverer_module.LEASE_SECONDS
    assert make_deliverer().look() == 0

    make_due(engine)
    (row,) = deliver(make_deliverer())
    assert row["state"] == "delivered"
    first, second = receiver.received
    assert first.id == second.id and first.body == second.body


def test_a_late_report_of_an_earlier_try_changes_nothing_but_that_the_receiver_has_it(
    engine: Engine, end_job: Callable[..., Job], rows: Callable[[], list[Mapping[str, Any]]]
) -> None:
    end_job()
    entry = {"at": "2026-01-01T00:00:00Z", "status_code": 500, "error": "x", "seconds": 0.1, "answer": None}
    with transaction(engine) as conn:
        first = trying.take(conn, 0.0)
        second = trying.take(conn, 60.0)
        assert first is not None and second is not None and first.id == second.id
        assert not trying.put_off(conn, first, entry, 5.0)
        assert not trying.give_up(conn, first, entry)
    assert (rows()[0]["state"], rows()[0]["attempts"], rows()[0]["log"]) == ("pending", 2, [])
    with transaction(engine) as conn:
        assert trying.delivered(conn, first, entry)
        assert not trying.give_up(conn, second, entry)
    assert rows()[0]["state"] == "delivered"


def test_two_deliverers_do_not_take_the_same_delivery(
    receiver: Receiver, end_job: Callable[..., Job], make_deliverer: Callable[..., Deliverer], eventually: Eventually
) -> None:
    for _ in range(6):
        end_job()
    one, two = make_deliverer(), make_deliverer()
    threads = [threading.Thread(target=deliverer.look) for deliverer in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: one._slots.free == two._slots.free == 32)
    one.look(), two.look()
    eventually(lambda: len(receiver.received) == 6)
    assert len({got.id for got in receiver.received}) == 6


def test_a_receiver_that_does_not_answer_does_not_hold_up_others(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    rows: Callable[[], list[Mapping[str, Any]]],
    eventually: Eventually,
) -> None:
    release = threading.Event()
    dead = Receiver()
    dead.answers = [Answer(500, before=lambda: release.wait(60))]
    try:
        for _ in range(50):
            end_job(url=dead.url)
        end_job()
        deliverer = make_deliverer(seconds=60.0)
        assert deliverer.look() == PER_HOST + 1
        eventually(lambda: len(receiver.received) == 1)
        eventually(lambda: len(dead.received) == PER_HOST)
        assert deliverer.look() == 0
    finally:
        release.set()
        dead.close()


def test_what_is_due_at_a_url_that_does_not_answer_shares_its_fate_and_other_urls_do_not(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_tenant: Callable[..., Tenant],
    rows: Callable[[], list[Mapping[str, Any]]],
) -> None:
    first, same, last = (end_job() for _ in range(3))
    elsewhere = end_job(url=f"{receiver.url}/other")
    stranger = end_job(tenant_id=make_tenant().id)
    later = end_job()
    entry = {"at": "2026-01-01T00:00:00Z", "status_code": None, "error": "no answer", "seconds": 10.0, "answer": None}
    with transaction(engine) as conn:
        due = trying.take(conn, 60.0)
        assert due is not None and due.job_id == first.id
        eleventh = {"attempts": len(DELAYS) + 3, "attempts_before": 3}
        conn.execute(table.update().where(table.c.job_id == last.id).values(eleventh))
        conn.execute(table.update().where(table.c.job_id == later.id).values(due_at=sa.text("now() + interval '1 h'")))
        trying.put_off(conn, due, entry, 5.0)
        assert trying.share_fate(conn, due, entry) == 2

    found = {row["job_id"]: row for row in rows()}
    shared = found[same.id]
    assert (shared["state"], shared["attempts"]) == ("pending", 1)
    assert "just failed (no answer)" in shared["log"][0]["error"]
    wait = shared["due_at"] - found[first.id]["due_at"]
    assert abs(wait.total_seconds()) < 3
    assert (found[last.id]["state"], found[last.id]["due_at"]) == ("failed", None)
    assert [found[job.id]["attempts"] for job in (elsewhere, stranger, later)] == [0, 0, 0]


def test_a_backlog_at_a_dead_url_is_put_off_with_the_first_that_fails(
    engine: Engine,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    rows: Callable[[], list[Mapping[str, Any]]],
    eventually: Eventually,
) -> None:
    for _ in range(20):
        end_job(url="http://127.0.0.1:1/")
    make_deliverer().look()
    eventually(lambda: all(row["log"] for row in rows()), timeout=30)
    assert {(row["state"], row["attempts"]) for row in rows()} == {("pending", 1)}


def test_a_backlog_for_an_address_that_is_refused_is_not_counted_as_tried(
    engine: Engine,
    end_job: Callable[..., Job],
    rows: Callable[[], list[Mapping[str, Any]]],
    eventually: Eventually,
) -> None:
    for _ in range(20):
        end_job(url="https://hooks.example.test/")
    deliverer = Deliverer(engine, Sender(AddressPolicy(), lookup=lambda _host, port: [(2, ("10.0.0.1", port))]))
    assert deliverer.look() == PER_HOST
    eventually(lambda: deliverer._slots.free == 32, timeout=30)
    # Those that were tried, and no others.
    assert sorted(row["attempts"] for row in rows()) == [0] * (20 - PER_HOST) + [1] * PER_HOST
    # Nor is a host of which nothing is known sent to more slowly.
    assert deliverer.look() == PER_HOST
    deliverer.close()


def _due(host: str, tenant: int = 1) -> trying.Due:
    return trying.Due(
        id=UUID(int=1),
        tenant_id=UUID(int=tenant),
        job_id=UUID(int=2),
        url="",
        host=host,
        secret=None,
        type="job.failed",
        body="",
        attempts=1,
        attempts_before=0,
        log=[],
    )


def test_a_host_that_was_silent_has_one_try_at_a_time_until_it_answers() -> None:
    slots = Slots()
    slots.fill(_due("a"))
    assert slots.full_hosts() == []
    slots.empty(_due("a"), silent=True)
    slots.fill(_due("a"))
    assert slots.full_hosts() == ["a"]
    slots.empty(_due("a"), silent=False)
    slots.fill(_due("a"))
    assert slots.full_hosts() == []


def test_one_tenant_never_has_all_of_the_tries() -> None:
    slots = Slots(parallel=8)
    for number in range(4):
        slots.fill(_due(f"host-{number}"))
    assert slots.full_tenants() == [UUID(int=1)]
    assert slots.free == 4


def test_a_delivery_that_is_not_taken_after_all_leaves_its_slot(
    database_url: str, end_job: Callable[..., Job], make_deliverer: Callable[..., Deliverer]
) -> None:
    from calotype.errors import DependencyDown

    end_job()
    deliverer = make_deliverer()
    outage = Outage(database_url)
    outage.begin()
    try:
        with pytest.raises(DependencyDown):
            deliverer.look()
    finally:
        outage.end()
    assert deliverer._slots.free == 32
    assert deliverer.look() == 1


def test_a_name_that_turns_out_to_be_private_is_not_sent_to(
    engine: Engine,
    settings: Settings,
    receiver: Receiver,
    end_job: Callable[..., Job],
    rows: Callable[[], list[Mapping[str, Any]]],
    eventually: Eventually,
) -> None:
    end_job(url=f"https://localhost.example.test:{receiver.port}/")
    deliverer = Deliverer(engine, Sender(AddressPolicy(), lookup=lambda _host, port: [(2, ("127.0.0.1", port))]))
    assert deliverer.look() == 1
    eventually(lambda: rows()[0]["log"])
    (row,) = rows()
    assert (row["state"], row["log"][0]["error"]) == ("pending", "the host does not resolve to public addresses")
    assert receiver.received == []
    deliverer.close()


# --- What is kept, and who sees it ---


def test_no_secret_is_in_a_log_line_or_in_what_a_value_shows_of_itself(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.answers = [Answer(500), Answer(410)]
    caplog.set_level(logging.DEBUG)
    job = end_job(url=f"{receiver.url}?token=of-the-receiver")
    with transaction(engine) as conn:
        own = tenant_secrets.rotate_secret(conn, job.tenant_id)
    end_job(secret=None)
    deliver(make_deliverer(), expect=2)
    with transaction(engine) as conn:
        make_it_due = table.update().values(state="pending", due_at=sa.text("clock_timestamp()"))
        conn.execute(make_it_due)
        due = trying.take(conn, 1.0)
    shown = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith(("worker", "calo"))]
    shown += [repr(job), repr(due), repr(own), repr(queue.NewJob(**_new(job)))]
    assert any("webhook" in line for line in shown)
    for secret in (SECRET, own.current, "of-the-receiver"):
        assert not [line for line in shown if secret in line]


def _new(job: Job) -> dict[str, Any]:
    return {
        "tenant_id": job.tenant_id,
        "kind": job.kind,
        "family": job.family,
        "model": job.model,
        "spec": job.spec,
        "webhook": job.webhook,
    }


def test_deliveries_belong_to_their_tenant_alone(
    engine: Engine, end_job: Callable[..., Job], make_tenant: Callable[..., Tenant], rows: Callable[[], list[Any]]
) -> None:
    end_job()
    (row,) = rows()
    other = make_tenant().id
    with transaction(engine) as conn:
        assert deliveries.list_deliveries(conn, other, DeliveryFilter(), None, 10).items == []
        with pytest.raises(NotFound):
            deliveries.get_delivery(conn, other, row["id"])
        with pytest.raises(NotFound):
            deliveries.replay(conn, other, row["id"])


def test_a_list_is_filtered_and_goes_on_after_its_last_item(engine: Engine, end_job: Callable[..., Job]) -> None:
    jobs = [end_job() for _ in range(3)]
    tenant_id = jobs[0].tenant_id

    def found(wanted: DeliveryFilter, after: UUID | None = None, limit: int = 10) -> list[Delivery]:
        with transaction(engine) as conn:
            return deliveries.list_deliveries(conn, tenant_id, wanted, after, limit).items

    newest = [job.id for job in reversed(jobs)]
    assert [one.job_id for one in found(DeliveryFilter())] == newest
    first = found(DeliveryFilter(), limit=2)
    assert [one.job_id for one in first + found(DeliveryFilter(), first[-1].id)] == newest
    assert [one.job_id for one in found(DeliveryFilter(job_id=jobs[1].id))] == [jobs[1].id]
    assert found(DeliveryFilter(states=(DeliveryState.FAILED,))) == []
    assert len(found(DeliveryFilter(states=(DeliveryState.FAILED, DeliveryState.PENDING)))) == 3


def test_old_deliveries_are_forgotten_unless_they_are_still_to_be_sent(
    engine: Engine,
    end_job: Callable[..., Job],
    make_deliverer: Callable[..., Deliverer],
    deliver: Callable[..., list[Any]],
    rows: Callable[[], list[Mapping[str, Any]]],
) -> None:
    old, recent, waiting = end_job(), end_job(), end_job()
    with transaction(engine) as conn:
        conn.execute(
            table.update().where(table.c.job_id == waiting.id).values(due_at=sa.text("now() + interval '1 h'"))
        )
        aged = table.c.job_id.in_([old.id, waiting.id])
        conn.execute(table.update().where(aged).values(created_at=sa.text("now() - interval '31 d'")))
    deliver(make_deliverer(), expect=2)
    with transaction(engine) as conn:
        assert deliveries.forget(conn, 30 * 86_400.0) == 1
    assert {row["job_id"] for row in rows()} == {recent.id, waiting.id}


# --- The reconciler ---


@pytest.fixture
def start_reconciler(settings: Settings, store: ObjectStore, start_python: Callable[..., Any]) -> Callable[[str], Any]:
    """`start_reconciler(name)`: a process that may send to this machine; its log is `<name>.log`."""

    def start(name: str) -> Any:
        changed = dataclasses.replace(settings, webhook_private_addresses="127.0.0.0/8")
        return start_python(name, "-m", "worker.reconciler", settings=changed)

    return start


def test_a_reconciler_that_is_killed_after_it_has_sent_is_followed_by_one_that_sends_again(
    engine: Engine,
    receiver: Receiver,
    end_job: Callable[..., Job],
    rows: Callable[[], list[Mapping[str, Any]]],
    start_reconciler: Callable[[str], Any],
    eventually: Eventually,
) -> None:
    first = start_reconciler("first")
    # SIGKILL after the message has arrived, before what came of it can be written down.
    receiver.answers = [Answer(200), Answer(200, before=first.kill), Answer(200)]
    end_job()
    eventually(lambda: [row["state"] for row in rows()] == ["delivered"], timeout=90)
    end_job()
    eventually(lambda: len(receiver.received) == 2, timeout=90)
    assert first.wait(30) == -signal.SIGKILL
    assert [row["state"] for row in rows()] == ["delivered", "pending"]

    make_due(engine)
    second = start_reconciler("second")
    eventually(lambda: [row["state"] for row in rows()] == ["delivered"] * 2, timeout=90)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) == 0
    _, before, after = receiver.received
    assert before.id == after.id and before.body == after.body and after.signed_by(SECRET)
