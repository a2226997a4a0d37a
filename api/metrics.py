"""`/metrics`: what an autoscaler and a person on call look at."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.turns import Permits
from calotype import queue
from calotype.database import transaction
from calotype.errors import DependencyDown

logger = logging.getLogger(__name__)


class QueueCollector(Collector):
    """Reads the queues at every scrape: the numbers are those of Postgres, not of this process."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Names the metrics without asking Postgres, which need not be there when the process starts."""
        yield from self._families().values()

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("calotype_postgres_up", "1 when Postgres answered this scrape.")
        try:
            with transaction(self._engine) as conn:
                stats = queue.queue_stats(conn)
        except DependencyDown as exc:
            logger.warning("no queue metrics", extra={"detail": exc.detail})
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        families = self._families()
        for entry in stats:
            families["depth"].add_metric([entry.queue], entry.depth)
            families["runnable"].add_metric([entry.queue], entry.runnable)
            families["running"].add_metric([entry.queue], entry.running)
            families["oldest_wait_seconds"].add_metric([entry.queue], entry.oldest_wait_seconds)
            families["workers"].add_metric([entry.queue], entry.workers)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        meanings = {
            "depth": "Jobs that wait; of those that may start, of the others, 100,000 are counted at most.",
            "runnable": "Waiting jobs that may start now; 100,000 stands for that many or more.",
            "running": "Jobs that a worker holds.",
            "oldest_wait_seconds": "How long the oldest runnable job has waited.",
            "workers": "Live workers that serve the queue.",
        }
        return {
            name: GaugeMetricFamily(f"calotype_queue_{name}", text, labels=["queue"]) for name, text in meanings.items()
        }


def add_waiting(registry: CollectorRegistry, waiters: Permits) -> None:
    """How many clients wait at this process; near CALOTYPE_API_WAITERS the next ones are turned away."""
    waiting = Gauge("calotype_http_waiting_clients", "Clients that wait, for events or a change.", registry=registry)
    waiting.set_function(lambda: waiters.taken)


def make_registry(engine: sa.Engine) -> CollectorRegistry:
    """A registry of this app alone, so that two apps in one process do not meet."""
    registry = CollectorRegistry()
    registry.register(QueueCollector(engine))
    return registry
