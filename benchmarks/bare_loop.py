"""The starter model without a queue: ``python -m benchmarks.bare_loop``

For each line "BATCH CALLS" on standard input it calls the pipeline so often and prints the seconds that it took.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import torch

import starter
from calotype.ids import new_id
from calotype.jobs import Family
from calotype.registry import ModelVersion
from worker.families.diffusion import cache
from worker.families.diffusion.load import Loaded, open_pipeline
from worker.families.diffusion.sampling import Sampling, Wanted, sample

PROMPT = "blue bird logo"
#: What submission fills in for the model that ships.
SAMPLING = Sampling(
    width=starter.DIFFUSION_SIZE,
    height=starter.DIFFUSION_SIZE,
    steps=starter.DIFFUSION_STEPS,
    guidance_scale=starter.DIFFUSION_GUIDANCE,
)


def main() -> None:
    loaded = _load()
    for line in sys.stdin:
        batch, calls = (int(word) for word in line.split())
        began = time.perf_counter()
        for number in range(calls):
            images = [Wanted(prompt=PROMPT, seed=number * batch + at) for at in range(batch)]
            if None in sample(loaded, images, SAMPLING):
                raise AssertionError("the model gave no numbers")
        print(time.perf_counter() - began, flush=True)


def _load() -> Loaded:
    version = _version()
    device = torch.device("cpu")
    pipeline = open_pipeline(starter.diffusion_dir(), version, torch.float32).to(device)
    tokens = cache.t5_tokens(pipeline, version.parameters["max_text_tokens"])
    return Loaded(pipeline=pipeline, device=device, dtype=torch.float32, t5_tokens=tokens)


def _version() -> ModelVersion:
    """What the registry would say of the model that ships."""
    model = starter.DIFFUSION
    return ModelVersion(
        id=new_id(),
        name=model.name,
        version=1,
        tenant_id=None,
        family=Family.DIFFUSION,
        architecture="sd3",
        base=None,
        digest="",
        files=(),
        source={},
        licence=model.licence,
        parameters=model.parameters,
        job_id=None,
        created_at=datetime.now(UTC),
    )


if __name__ == "__main__":
    main()
