"""Threads whose failures are not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence


def run_all(tasks: Sequence[Callable[[], None]]) -> None:
    """Run each task in a thread of its own and wait for all; raises the first failure."""
    failures: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as exc:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(exc)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
