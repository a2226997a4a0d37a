"""What each queue's jobs do, by model family.

Handlers are named, not imported: a worker that serves only one queue loads only what that queue needs, and
the reconciler loads none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Final

#: Queue → "module:function" of its handler. `run` takes one job (`worker.context.Handler`), `run_batch` several that
#: share one call of their model (`worker.batch.BatchHandler`).
HANDLERS: Final[dict[str, str]] = {
    "diffusion.generate": "worker.families.diffusion.generate:run_batch",
    "diffusion.train": "worker.families.diffusion.train:run",
    "diffusion.benchmark": "worker.benchmark.run:run",
    "gan.generate": "worker.families.gan.generate:run_batch",
    "gan.train": "worker.families.gan.train:run",
    "gan.benchmark": "worker.benchmark.run:run",
}


class _Batched(Set[str]):
    """A view of HANDLERS."""

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        return (name for name, handler in HANDLERS.items() if handler.endswith(":run_batch"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


#: Queues whose jobs may share one call of the model.
BATCHED: Final[Set[str]] = _Batched()
