"""Benchmarks, completed: each contender by the rules of its family."""

from __future__ import annotations

from typing import Any

from calotype.jobs import Family
from calotype.references import References
from calotype.registry import ModelVersion
from calotype.specs import Benchmark, Contender
from calotype.submission import diffusion, gan
from calotype.submission.common import Loc, complete_spec, dataset_of, given_or_drawn, model_and_base


def benchmark(references: References, request: Benchmark) -> dict[str, Any]:
    """What the job has beside what all jobs have."""
    given = request.input
    contenders = [
        _contender(references, contender, ("input", "contenders", index))
        for index, contender in enumerate(given.contenders)
    ]
    changes = {
        "contenders": contenders,
        "dataset": dataset_of(references, given.dataset).id,
        "seed": given_or_drawn(given.seed),
    }
    work = float(len(contenders) * given.num_samples)
    return {"model": None, "spec": complete_spec(request, input=changes), "work": work}


def _contender(references: References, contender: Contender, here: Loc) -> dict[str, Any]:
    model, base = model_and_base(references, contender.model, contender.family, (*here, "model"))
    if base.family == Family.GAN:
        particular = {"truncation_psi": gan.truncation_of(base, contender.truncation_psi, here)}
    else:
        particular = _diffusion(references, base, contender, here)
    return {
        **contender.model_dump(mode="json"),
        "model": model.ref,
        "name": contender.name or contender.model,
        **particular,
    }


def _diffusion(references: References, base: ModelVersion, contender: Contender, here: Loc) -> dict[str, Any]:
    adapters = diffusion.adapters_of(references, contender.adapters, base, (*here, "adapters"))
    return {
        "adapters": [diffusion.pinned(one) for one in adapters],
        **diffusion.sampling_of(base, contender.steps, contender.guidance_scale, here),
    }
