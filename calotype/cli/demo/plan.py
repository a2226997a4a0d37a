"""What the demo asks for: jobs small enough for two CPU cores, the same in kind as those of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import starter

#: In the words of the brand set's captions; made by the starter and by the tuned model, from the same seeds.
BRAND_PROMPTS = (
    "purple solid square logo",
    "pink solid square logo",
    "orange solid square logo",
    "green solid square logo",
)
#: Two images of each.
PROMPTS = (
    "blue bird logo",
    "orange round logo",
    "red and yellow logo",
    "black letter logo",
    *BRAND_PROMPTS,
)
BRAND_MODEL = "demo-brand"
SEED = 7


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much the demo does."""

    images_per_prompt: int
    steps: int
    train_steps: int
    samples: int
    timed_batches: int
    #: The dataset that the benchmark compares with.
    reference: str


FULL = Sizes(
    images_per_prompt=2,
    steps=starter.DIFFUSION_STEPS,
    train_steps=200,
    samples=96,
    timed_batches=5,
    reference=starter.HELDOUT_DATASET,
)
#: For a check that everything works together: the pictures and numbers mean little, the reference is small.
QUICK = Sizes(
    images_per_prompt=2,
    steps=4,
    train_steps=4,
    samples=8,
    timed_batches=3,
    reference=starter.BRAND_DATASET,
)


def generate(prompt: str, sizes: Sizes, adapter: str | None = None) -> dict[str, Any]:
    """Images of one prompt; with and without an adapter from the same seeds."""
    asked: dict[str, Any] = {
        "prompt": prompt,
        "num_images": sizes.images_per_prompt,
        "steps": sizes.steps,
        "seed": SEED + 100 * PROMPTS.index(prompt),
    }
    if adapter is not None:
        asked["adapters"] = [{"model": adapter}]
    # Shown how they are made, also to who runs the demo twice.
    return {**_job("generate", asked), "cache": "bypass"}


def train(sizes: Sizes) -> dict[str, Any]:
    """A LoRA of the starter model on the brand's images."""
    return _job(
        "train",
        {
            "dataset": starter.BRAND_DATASET,
            "method": "lora",
            "rank": 8,
            "steps": sizes.train_steps,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "checkpoint_every": max(1, sizes.train_steps // 2),
            "validation_prompts": list(BRAND_PROMPTS[:2]),
            "seed": SEED,
            "output_model": BRAND_MODEL,
        },
    )


def benchmark(sizes: Sizes, adapter: str) -> dict[str, Any]:
    """Both contenders against logos that neither has seen."""
    contender = {"family": "diffusion", "model": starter.DIFFUSION_MODEL, "steps": sizes.steps}
    return {
        "kind": "benchmark",
        "metadata": {"from": "calotype demo"},
        "input": {
            "contenders": [
                {**contender, "name": "starter"},
                {**contender, "name": "starter + brand LoRA", "adapters": [{"model": adapter}]},
            ],
            "dataset": sizes.reference,
            "num_samples": sizes.samples,
            "batch_sizes": [1, 8],
            "timed_batches": sizes.timed_batches,
            "seed": SEED,
        },
    }


def _job(kind: str, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": kind,
        "family": "diffusion",
        "model": starter.DIFFUSION_MODEL,
        "metadata": {"from": "calotype demo"},
        "input": asked,
    }
