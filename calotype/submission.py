"""From a valid request to a complete job: references pinned, defaults filled in, limits checked, seed drawn.

What a worker later sees in ``job.spec`` leaves nothing open, so that the same spec makes the same images again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from calotype import keys
from calotype.datasets import Dataset
from calotype.errors import FieldError, Invalid, NotFound
from calotype.ids import draw_seed
from calotype.jobs import Family, Kind
from calotype.queue import NewJob
from calotype.references import Held, References
from calotype.registry import ModelVersion
from calotype.sizes import Sizes
from calotype.specs import Adapter, Benchmark, DiffusionGenerate, DiffusionTrain, JobRequest

Loc = tuple[str | int, ...]


def prepare(conn: sa.Connection, tenant_id: UUID, request: JobRequest) -> NewJob:
    """Completes a request for :func:`calotype.queue.submit`, by what the database says now.

    Raises:
        Invalid, NotFound: as :func:`complete`.
    """
    return complete(Held(conn, tenant_id), tenant_id, request)


def complete(references: References, tenant_id: UUID, request: JobRequest) -> NewJob:
    """Completes a request: what it names pinned, defaults filled in, a seed drawn. Writes nothing.

    Raises:
        Invalid: the model cannot do what is asked, or is of another family; names the field and the nearest value.
        NotFound: the tenant has no such model, dataset or image.
    """
    if isinstance(request, DiffusionGenerate):
        particular = _generate(references, request)
    elif isinstance(request, DiffusionTrain):
        particular = _train(references, request)
    else:
        particular = _benchmark(references, request)
    return NewJob(
        tenant_id=tenant_id,
        kind=Kind(request.kind),
        family=Family(request.family),
        priority=request.priority,
        max_attempts=request.max_attempts,
        deadline_seconds=request.deadline_seconds,
        timeout_seconds=request.timeout_seconds,
        metadata=request.metadata,
        webhook=_webhook(request),
        retain_seconds=request.retain_seconds,
        **particular,
    )


def _generate(references: References, request: DiffusionGenerate) -> dict[str, Any]:
    model, base = _model_and_base(references, request.model, request.family, ("model",))
    sizes = Sizes.of(base.parameters)
    given = request.input
    width, height = given.width or sizes.default_width, given.height or sizes.default_height
    sizes.check(width, ("input", "width"))
    sizes.check(height, ("input", "height"))
    adapters = _adapters(references, given.adapters, base, ("input", "adapters"))
    changes: dict[str, Any] = {
        "width": width,
        "height": height,
        **_sampling(base, given.steps, given.guidance_scale, ("input",)),
        "seed": draw_seed() if given.seed is None else given.seed,
        "adapters": [_pinned(one) for one in adapters],
    }
    if given.init_image is not None:
        changes["init_image"] = references.init_image(given.init_image)
        changes["strength"] = 0.6 if given.strength is None else given.strength
    spec = _spec(request, model=model.ref, input=changes)
    overlaid = [*([(model, 1.0)] if model.base is not None else []), *adapters]
    cache_key, any_seed_key = keys.cache_keys(base, overlaid, spec["input"])
    evaluations = changes["steps"] * (2 if changes["guidance_scale"] > 1 else 1)
    return {
        "model": model.ref,
        "spec": spec,
        "model_key": base.key,
        "batch_key": keys.batch_key(base, overlaid, spec["input"]),
        "units": given.num_images,
        "batch_limit": keys.batch_limit(width, height),
        "work": given.num_images * evaluations * _megapixels(width, height),
        **_cache(request, cache_key, any_seed_key),
    }


def _cache(request: DiffusionGenerate, cache_key: str, any_seed_key: str) -> dict[str, Any]:
    if request.cache == "bypass":
        return {"cache": "bypass"}
    # Nobody has asked for a seed that was drawn this moment.
    drawn = request.cache == "use" and request.input.seed is None
    return {"cache": "bypass" if drawn else request.cache, "cache_key": cache_key, "any_seed_key": any_seed_key}


def _train(references: References, request: DiffusionTrain) -> dict[str, Any]:
    model, base = _model_and_base(references, request.model, request.family, ("model",))
    if model.architecture == "lora":
        raise _wrong(("model",), f"{model.ref} is an adapter; train from the model it fits, {model.base}")
    given = request.input
    resolution = given.resolution or Sizes.of(base.parameters).default_width
    Sizes.of(base.parameters).check(resolution, ("input", "resolution"))
    if references.is_taken(given.output_model, Family(request.family)):
        raise _wrong(
            ("input", "output_model"),
            f"{given.output_model!r} is a shared model or one of another family; choose another name",
        )
    dataset = _dataset(references, given.dataset)
    if given.label is not None and given.label not in dataset.labels:
        known = ", ".join(dataset.labels[:20]) or "none"
        raise _wrong(("input", "label"), f"{dataset.id} has no label {given.label!r}; it has: {known}")
    changes = {
        "dataset": dataset.id,
        "resolution": resolution,
        "alpha": float(given.rank) if given.alpha is None else given.alpha,
        "seed": draw_seed() if given.seed is None else given.seed,
    }
    return {
        "model": model.ref,
        "spec": _spec(request, model=model.ref, input=changes),
        "model_key": base.key,
        "work": given.steps * given.batch_size * _megapixels(resolution, resolution),
    }


def _benchmark(references: References, request: Benchmark) -> dict[str, Any]:
    contenders = []
    for index, contender in enumerate(request.input.contenders):
        here: Loc = ("input", "contenders", index)
        model, base = _model_and_base(references, contender.model, contender.family, (*here, "model"))
        contenders.append(
            {
                **contender.model_dump(mode="json"),
                "model": model.ref,
                "name": contender.name or contender.model,
                "adapters": [
                    _pinned(one) for one in _adapters(references, contender.adapters, base, (*here, "adapters"))
                ],
                **_sampling(base, contender.steps, contender.guidance_scale, here),
            }
        )
    seed = request.input.seed
    changes = {
        "contenders": contenders,
        "dataset": _dataset(references, request.input.dataset).id,
        "seed": draw_seed() if seed is None else seed,
    }
    work = float(len(contenders) * request.input.num_samples)
    return {"model": None, "spec": _spec(request, input=changes), "work": work}


def _spec(request: JobRequest, *, input: Mapping[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: A002
    # A spec is shown; what signs the webhook is kept beside it.
    whole = request.model_dump(mode="json", exclude={"webhook": {"secret"}})
    return {**whole, **changes, "input": {**whole["input"], **input}}


def _webhook(request: JobRequest) -> dict[str, str] | None:
    if request.webhook is None:
        return None
    secret = request.webhook.secret
    return {"url": request.webhook.url, **({"secret": secret.get_secret_value()} if secret is not None else {})}


def _model_and_base(references: References, ref: str, family: str, loc: Loc) -> tuple[ModelVersion, ModelVersion]:
    """The version that is asked for, and the one whose sizes count: an adapter's base, else itself."""
    try:
        model = references.version(ref)
    except NotFound as exc:
        raise _wrong(loc, exc.detail, code="unknown_model") from exc
    if model.family != family:
        raise _wrong(loc, f"{model.ref} is a {model.family} model; name a {family} model or set family to it")
    if model.base is None:
        return model, model
    return model, references.version(model.base)


def _adapters(
    references: References, adapters: tuple[Adapter, ...], base: ModelVersion, loc: Loc
) -> list[keys.Weighted]:
    found = []
    for index, adapter in enumerate(adapters):
        try:
            version = references.version(adapter.model)
        except NotFound as exc:
            raise _wrong((*loc, index, "model"), exc.detail, code="unknown_model") from exc
        if version.base is None:
            raise _wrong((*loc, index, "model"), f"{version.ref} is not an adapter; name one made by a LoRA train job")
        if version.base != base.ref:
            raise _wrong((*loc, index, "model"), f"{version.ref} fits {version.base}, not {base.ref}")
        found.append((version, adapter.scale))
    return found


def _pinned(adapter: keys.Weighted) -> dict[str, Any]:
    version, scale = adapter
    return {"model": version.ref, "scale": scale}


def _megapixels(width: int, height: int) -> float:
    return width * height / 1e6


def _sampling(base: ModelVersion, steps: int | None, guidance: float | None, loc: Loc) -> dict[str, Any]:
    most = int(base.parameters.get("max_steps", 1000))
    chosen = steps or int(base.parameters.get("default_steps", 28))
    if chosen > most:
        raise _wrong((*loc, "steps"), f"{base.ref} does at most {most} steps, got {chosen}")
    default_guidance = float(base.parameters.get("default_guidance_scale", 4.0))
    return {"steps": chosen, "guidance_scale": default_guidance if guidance is None else guidance}


def _dataset(references: References, ref: str) -> Dataset:
    try:
        return references.dataset(ref)
    except NotFound as exc:
        raise _wrong(("input", "dataset"), exc.detail, code="unknown_dataset") from exc


def _wrong(loc: Loc, message: str, *, code: str | None = None) -> Invalid:
    return Invalid(errors=[FieldError(loc=loc, msg=message)], code=code)
