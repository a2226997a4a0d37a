"""The Celery side of a worker: hears doorbells, nothing else.

Celery carries no job. One task, acknowledged on arrival, without results, tells the drain loop to look. The listener
runs in a thread: the process's signals, its life and its jobs depend neither on Celery nor on Redis, and a worker that
starts while Redis is down works by its own clock until Celery gets through.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from celery import Celery
from celery.concurrency.thread import TaskPool
from celery.platforms import EX_OK
from celery.worker import WorkController
from celery.worker import state as celery_state
from kombu.asynchronous import get_event_loop
from kombu.entity import Queue

from calotype.doorbell import CELERY_TASK_NAME, Doorbell, celery_config
from calotype.settings import Settings
from worker.drain import DrainLoop

log = logging.getLogger(__name__)

#: Pause before the listener is started again after it ended by itself, seconds.
RESTART_SECONDS = 5.0
#: Celery's loggers that have a line for every doorbell.
CHATTY = ("celery.worker.strategy", "celery.app.trace")


def make_app(settings: Settings, queues: Sequence[str], drain: DrainLoop, doorbell: Doorbell) -> Celery:
    """A Celery app with one task, which consumes `queues` and wakes `drain`."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    app = Celery("calotype", config_source=celery_config(settings), set_as_current=False)
    app.conf.update(
        task_queues=[Queue(name) for name in queues],  # type: ignore[no-untyped-call]
        worker_pool=f"{__name__}:WakingThreads",
        worker_concurrency=1,
        # Both are needed. With a prefetch, Celery on Redis goes deaf for good after some restarts of Redis, and a busy
        # worker holds doorbells that an idle one should hear.
        worker_prefetch_multiplier=0,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Doorbells are acknowledged on arrival: there is nothing to cancel. Set, because unset means a warning.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        # Forever, also when Redis is down at the start.
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )

    def hear(task: Any) -> None:
        answer(task.request.delivery_info["routing_key"], drain, doorbell)

    app.task(name=CELERY_TASK_NAME, bind=True, shared=False, ignore_result=True, acks_late=False)(hear)
    app.finalize()
    # Celery's tracer looks tasks up in the default app of the process.
    app.set_default()
    for name in list(app.tasks):
        if name != CELERY_TASK_NAME:
            # Celery's own (chords, chains, …) have no business here.
            app.tasks.unregister(name)
    return app


def answer(queue: str, drain: DrainLoop, doorbell: Doorbell) -> None:
    """Have a bell of ``queue`` answered: by a look of this worker, or by another one."""
    if drain.answers:
        drain.wait_answered(drain.ring())
        if not drain.resting:
            return
    # Busy by its own clock, or drained by an operator, which the look may have found out: this bell is better heard by
    # an idle worker. It cannot come back here before that is over, for it fills the only slot until then.
    doorbell.ring(queue)
    drain.wait_allowed()
    drain.wait_answered(drain.ring())


class WakingThreads(TaskPool):  # type: ignore[misc]
    """Celery's thread pool, telling the event loop when a task has ended.

    Nothing else does: with prefetching disabled the loop would go on sleeping and hear the next doorbell up to a second
    late.
    """

    def on_apply(self, *args: Any, **kwargs: Any) -> Any:
        applied = super().on_apply(*args, **kwargs)
        applied.f.add_done_callback(_task_ended)
        return applied


def _task_ended(task: Future[Any]) -> None:
    if task.exception() is not None:
        # It fell before Celery took note of its end, and would fill the only slot for good: a deaf worker.
        log.error("a doorbell was not answered", exc_info=task.exception())
        celery_state.reserved_requests.clear()
        celery_state.active_requests.clear()
    _wake_event_loop()


def _wake_event_loop() -> None:
    loop = get_event_loop()
    if loop is not None:
        loop.call_soon(_nothing)  # type: ignore[no-untyped-call]


def _nothing() -> None:
    """Queued so that the event loop goes round once more."""


class Listener:
    """Runs Celery's worker in a thread, and again should it ever end by itself."""

    def __init__(self, app: Celery, name: str) -> None:
        self._app = app
        self._name = name
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="doorbells", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """Stop listening, if it ever began. The drain loop has ended by now, so no task is waiting for it."""
        self._stopping.set()
        if not self._thread.is_alive():
            return
        celery_state.should_stop = EX_OK
        _wake_event_loop()
        self._thread.join(timeout=seconds)
        celery_state.should_stop = None

    def _listen(self) -> None:
        while not self._stopping.is_set():
            try:
                # Not celery.apps.worker.Worker, which would take over the signals and the logging of the process.
                WorkController(
                    app=self._app, hostname=self._name, without_gossip=True, without_mingle=True, without_heartbeat=True
                ).start()
            except Exception:
                log.exception("the doorbell listener failed")
            if not self._stopping.is_set():
                log.warning("the doorbell listener ended, starting it again", extra={"seconds": RESTART_SECONDS})
                self._stopping.wait(RESTART_SECONDS)
