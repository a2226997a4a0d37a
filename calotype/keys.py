"""What makes two jobs alike: the same model to load, the same call to share, the same result to reuse."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from calotype.registry import ModelVersion

#: Images of one call at most, and how many pixels they may have together; a worker may take fewer.
LARGEST_BATCH = 16
BATCH_PIXELS = 8 * 1024 * 1024

#: Parts of a diffusion spec's input that each image of a call has of its own.
_PER_IMAGE = ("prompt", "negative_prompt", "num_images", "seed", "init_image")

Weighted = tuple[ModelVersion, float]


def batch_limit(width: int, height: int) -> int:
    """How many images of this size one call of the model makes before anything is known about memory."""
    return max(1, min(LARGEST_BATCH, BATCH_PIXELS // (width * height)))


def batch_key(base: ModelVersion, adapters: Sequence[Weighted], spec_input: Mapping[str, Any]) -> str:
    """Equal for jobs that one call of the model can serve: same files, size, steps, scheduler and guidance.

    ``adapters`` are all that lie over ``base``, in order, with their scales.
    """
    shared = {name: value for name, value in spec_input.items() if name not in _PER_IMAGE}
    shared["adapters"] = [[version.key, scale] for version, scale in adapters]
    # With an image to start from it is another pipeline.
    shared["from_image"] = spec_input.get("init_image") is not None
    return _digest({"model": base.key, "input": shared})


def gan_batch_key(model: ModelVersion) -> str:
    """Equal for jobs of one GAN: all that they may ask for, each image of a call can have of its own."""
    return _digest({"model": model.key, "input": {}})


def cache_keys(base: ModelVersion, adapters: Sequence[Weighted], spec_input: Mapping[str, Any]) -> tuple[str, str]:
    """Equal for jobs of a tenant that give the same images; and the same without regard to the seed.

    By the digests of files, not by names: a name may be given again.
    """
    whole = {**spec_input, "adapters": [[version.digest, scale] for version, scale in adapters]}
    seedless = {name: value for name, value in whole.items() if name != "seed"}
    return (
        _digest({"model": base.digest, "input": whole}),
        _digest({"model": base.digest, "input": seedless, "any": "seed"}),
    )


def _digest(value: Mapping[str, Any]) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
