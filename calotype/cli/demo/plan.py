"""What the demo asks for: jobs small enough for two CPU cores, the same in kind as those of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
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
#: Two images of each, as of each label below.
PROMPTS = (
    "blue bird logo",
    "orange round logo",
    "red and yellow logo",
    "black letter logo",
    *BRAND_PROMPTS,
)
#: Of the GAN, which is asked for a colour instead: the first colours of those prompts, and teal.
LABELS = ("blue", "orange", "red", "black", "purple", "pink", "green", "teal")
BRAND_MODEL = "demo-brand"
SEED = 7
#: Where the demo's jobs wait.
QUEUES = ("diffusion.generate", "gan.generate", "diffusion.train", "diffusion.benchmark")


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
    return _made_anew(_job("generate", asked))


def generate_with_gan(label: str, sizes: Sizes) -> dict[str, Any]:
    """Images of one colour."""
    asked = {"label": label, "num_images": sizes.images_per_prompt, "seed": SEED + 100 * LABELS.index(label)}
    return _made_anew({**_job("generate", asked), "family": "gan", "model": starter.GAN_MODEL})


def words(spec: Mapping[str, Any]) -> str:
    """What a generate job of the demo was asked for: its prompt, or its label."""
    asked: str = spec["input"]["label" if spec["family"] == "gan" else "prompt"]
    return asked


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


def benchmark(sizes: Sizes) -> dict[str, Any]:
    """Diffusion and GAN against logos that neither has seen."""
    return {
        "kind": "benchmark",
        "metadata": {"from": "calotype demo"},
        "input": {
            "contenders": [
                {"family": "diffusion", "model": starter.DIFFUSION_MODEL, "steps": sizes.steps},
                {"family": "gan", "model": starter.GAN_MODEL},
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


def _made_anew(job: dict[str, Any]) -> dict[str, Any]:
    """Shown how its images are made, also to who runs the demo twice."""
    return {**job, "cache": "bypass"}
