"""What each queue's jobs do, by model family.

Handlers are named, not imported: a worker that serves only one queue loads only what that queue needs, and
the reconciler loads none of it.
"""

from __future__ import annotations

from typing import Final

#: Queue → "module:function" of its handler (`worker.context.Handler`).
HANDLERS: Final[dict[str, str]] = {
    "diffusion.generate": "worker.families.diffusion.generate:run",
    "diffusion.train": "worker.families.diffusion.train:run",
    "diffusion.benchmark": "worker.benchmark.run:run",
}
