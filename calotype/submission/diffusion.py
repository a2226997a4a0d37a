"""Jobs of the diffusion family, completed."""

from __future__ import annotations

from typing import Any

from calotype import keys
from calotype.errors import NotFound
from calotype.references import References
from calotype.registry import ModelVersion
from calotype.sizes import Sizes
from calotype.specs import Adapter, DiffusionGenerate, DiffusionTrain
from calotype.submission.common import (
    Loc,
    cache_columns,
    check_output_model,
    complete_spec,
    dataset_of,
    given_or_drawn,
    megapixels,
    model_and_base,
    wrong,
)


def generate(references: References, request: DiffusionGenerate) -> dict[str, Any]:
    """What the job has beside what all jobs have."""
    model, base = model_and_base(references, request.model, request.family, ("model",))
    sizes = Sizes.of(base.parameters)
    given = request.input
    width, height = given.width or sizes.default_width, given.height or sizes.default_height
    sizes.check(width, ("input", "width"))
    sizes.check(height, ("input", "height"))
    adapters = adapters_of(references, given.adapters, base, ("input", "adapters"))
    changes: dict[str, Any] = {
        "width": width,
        "height": height,
        **sampling_of(base, given.steps, given.guidance_scale, ("input",)),
        "seed": given_or_drawn(given.seed),
        "adapters": [pinned(one) for one in adapters],
    }
    if given.init_image is not None:
        changes["init_image"] = references.init_image(given.init_image)
        changes["strength"] = 0.6 if given.strength is None else given.strength
    spec = complete_spec(request, model=model.ref, input=changes)
    overlaid = [*([(model, 1.0)] if model.base is not None else []), *adapters]
    evaluations = changes["steps"] * (2 if changes["guidance_scale"] > 1 else 1)
    return {
        "model": model.ref,
        "spec": spec,
        "model_key": base.key,
        "batch_key": keys.batch_key(base, overlaid, spec["input"]),
        "units": given.num_images,
        "batch_limit": keys.batch_limit(width, height),
        "work": given.num_images * evaluations * megapixels(width, height),
        **cache_columns(request.cache, given.seed, *keys.cache_keys(base, overlaid, spec["input"])),
    }


def train(references: References, request: DiffusionTrain) -> dict[str, Any]:
    """What the job has beside what all jobs have."""
    model, base = model_and_base(references, request.model, request.family, ("model",))
    if model.architecture == "lora":
        raise wrong(("model",), f"{model.ref} is an adapter; train from the model it fits, {model.base}")
    given = request.input
    resolution = given.resolution or Sizes.of(base.parameters).default_width
    Sizes.of(base.parameters).check(resolution, ("input", "resolution"))
    check_output_model(references, given.output_model, request.family)
    dataset = dataset_of(references, given.dataset)
    if given.label is not None and given.label not in dataset.labels:
        known = ", ".join(dataset.labels[:20]) or "none"
        raise wrong(("input", "label"), f"{dataset.id} has no label {given.label!r}; it has: {known}")
    changes = {
        "dataset": dataset.id,
        "resolution": resolution,
        "alpha": float(given.rank) if given.alpha is None else given.alpha,
        "seed": given_or_drawn(given.seed),
    }
    return {
        "model": model.ref,
        "spec": complete_spec(request, model=model.ref, input=changes),
        "model_key": base.key,
        "work": given.steps * given.batch_size * megapixels(resolution, resolution),
    }


def adapters_of(
    references: References, adapters: tuple[Adapter, ...], base: ModelVersion, loc: Loc
) -> list[keys.Weighted]:
    """The versions of adapters, with their scales. Raises Invalid for one that does not fit the base."""
    found = []
    for index, adapter in enumerate(adapters):
        try:
            version = references.version(adapter.model)
        except NotFound as exc:
            raise wrong((*loc, index, "model"), exc.detail, code="unknown_model") from exc
        if version.base is None:
            raise wrong((*loc, index, "model"), f"{version.ref} is not an adapter; name one made by a LoRA train job")
        if version.base != base.ref:
            raise wrong((*loc, index, "model"), f"{version.ref} fits {version.base}, not {base.ref}")
        found.append((version, adapter.scale))
    return found


def pinned(adapter: keys.Weighted) -> dict[str, Any]:
    version, scale = adapter
    return {"model": version.ref, "scale": scale}


def sampling_of(base: ModelVersion, steps: int | None, guidance: float | None, loc: Loc) -> dict[str, Any]:
    """Steps and guidance, the model's own where none is given. Raises Invalid for more steps than it does."""
    most = int(base.parameters.get("max_steps", 1000))
    chosen = steps or int(base.parameters.get("default_steps", 28))
    if chosen > most:
        raise wrong((*loc, "steps"), f"{base.ref} does at most {most} steps, got {chosen}")
    default_guidance = float(base.parameters.get("default_guidance_scale", 4.0))
    return {"steps": chosen, "guidance_scale": default_guidance if guidance is None else guidance}
