"""As many at once as fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from calotype.errors import JobFailed
from worker.failures import is_out_of_memory
from worker.families.diffusion.memory import free_memory

T = TypeVar("T")


def in_parts(
    items: Sequence[T],
    at_once: int,
    make: Callable[[Sequence[T]], None],
    *,
    wanted: Callable[[T], bool] = lambda item: True,
    log: Callable[[str], None] = lambda message: None,
) -> None:
    """Give all items to `make`, `at_once` in a call; half as many when out of memory.

    What was made stays; the part that failed is made again in smaller parts. What is not `wanted` any more when its
    turn comes is left out. Raises JobFailed `out_of_memory` when not even one item fits.
    """
    left = list(items)
    while left := [item for item in left if wanted(item)]:
        part = left[:at_once]
        try:
            make(part)
            left = left[len(part) :]
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside of the except block: until it ends the exception keeps the failed call's tensors alive.
        free_memory()
        if len(part) == 1:
            raise _does_not_fit()
        at_once = (len(part) + 1) // 2
        log(f"out of memory with {len(part)} images at once: trying {at_once}")


def _does_not_fit() -> JobFailed:
    return JobFailed(
        "out_of_memory",
        "Out of memory",
        "Not even one image at a time fits into memory. Ask for a smaller size, or use a larger device.",
        retryable=False,
    )
