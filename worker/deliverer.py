"""Sends webhooks: the reconciler's leader takes what is due and sends it from threads.

Nobody waits long for a receiver that does not answer: one host has few of the threads, one that was silent lately has
one, and a tenant never has them all.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Self
from uuid import UUID

from sqlalchemy import Engine

from calotype.database import connect_engine, transaction
from calotype.errors import DependencyDown
from calotype.settings import Settings
from calotype.webhooks import tenant_secrets, trying
from calotype.webhooks.schedule import next_delay
from calotype.webhooks.sending import Reply, Sender
from calotype.webhooks.targets import AddressPolicy
from calotype.webhooks.trying import Due

log = logging.getLogger(__name__)

#: Tries at once: in all, of one tenant, of one host.
PARALLEL, PER_TENANT, PER_HOST = 32, 16, 4
#: How long a try that is being made stays with this process; far longer than one can take.
LEASE_SECONDS = 60.0
#: Longest pause between two looks for what is due.
POLL_SECONDS = 0.5
#: Longest pause while Postgres is away.
LONGEST_PAUSE_SECONDS = 10.0
#: Hosts that are remembered for their silence; far more than can be held up at a time.
REMEMBERED_HOSTS = 10_000


class Slots:
    """Who is being sent to at this moment, and who therefore has enough."""

    def __init__(self, parallel: int = PARALLEL) -> None:
        self._parallel = parallel
        self._hosts: Counter[str] = Counter()
        self._tenants: Counter[UUID] = Counter()
        #: Hosts that did not answer the last time.
        self._silent: dict[str, None] = {}

    @property
    def free(self) -> int:
        return self._parallel - self._hosts.total()

    def full_hosts(self) -> Collection[str]:
        return [host for host, busy in self._hosts.items() if busy >= (1 if host in self._silent else PER_HOST)]

    def full_tenants(self) -> Collection[UUID]:
        most = max(1, min(PER_TENANT, self._parallel // 2))
        return [tenant for tenant, busy in self._tenants.items() if busy >= most]

    def fill(self, due: Due) -> None:
        self._hosts[due.host] += 1
        self._tenants[due.tenant_id] += 1

    def empty(self, due: Due, *, silent: bool) -> None:
        self._hosts -= Counter([due.host])
        self._tenants -= Counter([due.tenant_id])
        self._silent.pop(due.host, None)
        if silent:
            self._silent[due.host] = None
            if len(self._silent) > REMEMBERED_HOSTS:
                self._silent.pop(next(iter(self._silent)))


class Deliverer:
    """Takes due deliveries and sends them. Any number may run beside each other; one is enough."""

    def __init__(self, engine: Engine, sender: Sender, *, parallel: int = PARALLEL) -> None:
        self._engine = engine
        self._sender = sender
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="webhook")
        #: Guards the slots, and wakes :meth:`run` when one becomes free.
        self._changed = threading.Condition()
        self._slots = Slots(parallel)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """With connections of its own."""
        engine = connect_engine(settings, application_name="webhooks", pool_size=4)
        return cls(engine, Sender(AddressPolicy.of(settings.webhook_private_addresses)))

    def look(self) -> int:
        """Begins to send what is due and finds room; gives how many. Raises DependencyDown."""
        begun: list[Due] = []
        try:
            with self._changed, transaction(self._engine) as conn:
                while self._slots.free > 0:
                    due = trying.take(conn, LEASE_SECONDS, self._slots.full_hosts(), self._slots.full_tenants())
                    if due is None:
                        break
                    begun.append(due)
                    self._slots.fill(due)
        except BaseException:
            # Not committed, so not taken.
            for due in begun:
                self._leave(due, silent=False)
            raise
        for due in begun:
            self._threads.submit(self._try, due)
        return len(begun)

    def run(self, leading: Callable[[], bool], stopping: threading.Event) -> None:
        """Looks again and again, as long as this process leads, until ``stopping`` is set."""
        failures = 0
        while not stopping.is_set():
            try:
                if leading():
                    self.look()
                failures = 0
            except DependencyDown as exc:
                failures += 1
                log.warning("no webhook is sent for now", extra={"reason": exc.detail, "failures": failures})
            pause = min(LONGEST_PAUSE_SECONDS, POLL_SECONDS * 2.0**failures)
            with self._changed:
                self._changed.wait(pause * random.uniform(0.8, 1.0))  # noqa: S311 - spreads load
        self.close()

    def close(self) -> None:
        """Waits for what is being sent, some seconds at most, and lets go of the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._engine.dispose()

    def _try(self, due: Due) -> None:
        reply = None
        try:
            reply = self._sender.send(due.url, str(due.id), due.body.encode(), self._secrets(due))
            self._record(due, reply)
        except DependencyDown as exc:
            # It falls due again, and is sent once more under the same id.
            log.warning("a try was not recorded", extra={"delivery": due.id, "reason": exc.detail})
        except Exception:
            log.exception("a try failed", extra={"delivery": due.id})
        finally:
            self._leave(due, silent=reply is not None and reply.slow)

    def _leave(self, due: Due, *, silent: bool) -> None:
        with self._changed:
            self._slots.empty(due, silent=silent)
            self._changed.notify()

    def _secrets(self, due: Due) -> tuple[str, ...]:
        if due.secret is not None:
            return (due.secret,)
        with transaction(self._engine) as conn:
            return tenant_secrets.get_secret(conn, due.tenant_id).signing

    def _record(self, due: Due, reply: Reply) -> None:
        delay = next_delay(due.tries, reply.retry_after, random.random())  # noqa: S311 - spreads load
        with transaction(self._engine) as conn:
            if reply.error is None:
                word, known = "delivered", trying.delivered(conn, due, reply.entry())
            elif reply.gone:
                word, known = "gone", trying.stop(conn, due, reply.entry())
            elif delay is None:
                word, known = "given up", trying.give_up(conn, due, reply.entry())
            else:
                word, known = "put off", trying.put_off(conn, due, reply.entry(), delay)
            if reply.silent:
                trying.share_fate(conn, due, reply.entry())
        # Without its path, which may hold a secret of the receiver.
        facts = {"delivery": due.id, "job": due.job_id, "host": due.host, "try": due.tries, "status": reply.status_code}
        level = logging.INFO if reply.error is None else logging.WARNING
        log.log(level, "webhook %s", word if known else "sent beside another try", extra=facts)
