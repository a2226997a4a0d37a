"""How often images are augmented: found by feedback, or set by a schedule.

Karras et al., "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676), Section 3: a
discriminator that knows its training images by heart gives them positive logits. The more of them are positive, the
more it is shown augmented ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from worker.families.gan.schedule import Ramp

#: The mean sign of real images' logits that is aimed at. (ADA paper, Section 3)
TARGET: Final = 0.6
#: Batches between adjustments. (ADA paper, Section 3)
INTERVAL: Final = 4
#: Thousand images in which p could go from 0 to 1, and that for a model that was trained before.
SPEED_KIMG: Final = 500.0
RESUME_SPEED_KIMG: Final = 100.0


class Controller(Protocol):
    """Who says how often images are augmented."""

    @property
    def p(self) -> float: ...

    def observe(self, signs: Tensor) -> None:
        """Takes the signs of the real images' logits of a batch, or of a part of it; see `signs`."""

    def end_batch(self) -> float:
        """Ends a batch and returns the p for the next one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def signs(real_logits: Tensor, fake_logits: Tensor | None = None) -> Tensor:
    """−1, 0 or 1 for each real image: whether the discriminator takes it for real.

    Relativistic logits have no absolute zero: there the paired fake's logits are the measure, and must be given.
    """
    logits = real_logits.detach().float().flatten()
    return torch.sign(logits if fake_logits is None else logits - fake_logits.detach().float().flatten())


class AdaptiveController:
    """p ← p ± 4·batch/(500·1000) every 4 batches, up where the mean sign lies above the target, within [0, 1].

    Signs gather on their device and are read only at an adjustment. `reduce` adds a tensor up over all processes, of
    which each has observed its part of the batch.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        p: float = 0.0,
        target: float = TARGET,
        speed_kimg: float = SPEED_KIMG,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if batch_size < 1 or not speed_kimg > 0:
            raise ValueError(f"batch size {batch_size} and speed {speed_kimg} kimg must be positive")
        self._p = _checked(p)
        self._step = INTERVAL * batch_size / (speed_kimg * 1000)
        self._target = target
        self._reduce = reduce or (lambda total: total)
        self._batches = 0
        #: Sum and number of the signs since the last adjustment.
        self._seen: Tensor | None = None
        #: The mean sign that the last adjustment found: the overfitting heuristic r_t. None before the first.
        self.heuristic: float | None = None

    @property
    def p(self) -> float:
        return self._p

    def observe(self, signs: Tensor) -> None:
        seen = torch.stack((signs.sum(dtype=torch.float64), signs.new_tensor(signs.numel(), dtype=torch.float64)))
        # A state that was loaded lies on the CPU.
        self._seen = seen if self._seen is None else self._seen.to(seen.device) + seen

    def end_batch(self) -> float:
        """Raises ValueError where an adjustment is due and nothing was observed."""
        self._batches += 1
        if self._batches >= INTERVAL:
            self._adjust()
        return self._p

    def _adjust(self) -> None:
        if self._seen is None:
            raise ValueError(f"no signs were observed in {self._batches} batches: p cannot be adjusted")
        total, number = self._reduce(self._seen).tolist()
        self.heuristic = total / number
        up = (self.heuristic > self._target) - (self.heuristic < self._target)
        self._p = min(1.0, max(0.0, self._p + up * self._step))
        self._batches, self._seen = 0, None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, of this process: where there are several, each keeps its own."""
        return {
            "p": self._p,
            "batches": self._batches,
            "seen": None if self._seen is None else self._seen.tolist(),
            "heuristic": self.heuristic,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._p = _checked(state["p"])
        self._batches = int(state["batches"])
        seen = state["seen"]
        self._seen = None if seen is None else torch.tensor(seen, dtype=torch.float64)
        self.heuristic = state["heuristic"]


class ScheduledController:
    """p follows a ramp, whatever the logits say. R3GAN is trained in this way (Huang et al., arXiv 2501.05441,
    Appendix: a cosine from 0)."""

    def __init__(self, batch_size: int, ramp: Ramp) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be positive")
        _checked(ramp.start), _checked(ramp.end)
        self._ramp = ramp
        self._batch_size = batch_size
        self._images = 0

    @property
    def p(self) -> float:
        return self._ramp.at(self._images)

    def observe(self, signs: Tensor) -> None:
        pass

    def end_batch(self) -> float:
        self._images += self._batch_size
        return self.p

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._images = int(state["images"])


def _checked(p: float) -> float:
    if not 0 <= p <= 1 or math.isnan(p):
        raise ValueError(f"the augmentation probability is {p}; it must lie in [0, 1]")
    return float(p)
