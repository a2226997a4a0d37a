"""What completing a request of any kind needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.datasets import Dataset
from calotype.errors import FieldError, Invalid, NotFound
from calotype.ids import draw_seed
from calotype.jobs import CacheMode, Family
from calotype.references import References
from calotype.registry import ModelVersion
from calotype.specs import Request

#: Which field of a request.
Loc = tuple[str | int, ...]


def wrong(loc: Loc, message: str, *, code: str | None = None) -> Invalid:
    """A mistake in one field."""
    return Invalid(errors=[FieldError(loc=loc, msg=message)], code=code)


def complete_spec(request: Request, *, input: Mapping[str, Any], **changes: Any) -> dict[str, Any]:  # noqa: A002
    """The request as the job has it: with these fields, and these of its input, in place of its own."""
    # A spec is shown; what signs the webhook is kept beside it.
    whole = request.model_dump(mode="json", exclude={"webhook": {"secret"}})
    return {**whole, **changes, "input": {**whole["input"], **input}}


def given_or_drawn(seed: int | None) -> int:
    return draw_seed() if seed is None else seed


def cache_columns(mode: CacheMode, seed: int | None, cache_key: str, any_seed_key: str) -> dict[str, Any]:
    """How a job that makes images may be answered by an equal one; ``seed`` is the one asked for."""
    if mode == "bypass":
        return {"cache": "bypass"}
    # Nobody has asked for a seed that was drawn this moment.
    drawn = mode == "use" and seed is None
    return {"cache": "bypass" if drawn else mode, "cache_key": cache_key, "any_seed_key": any_seed_key}


def model_and_base(references: References, ref: str, family: str, loc: Loc) -> tuple[ModelVersion, ModelVersion]:
    """The version that is asked for, and the one whose sizes count: an adapter's base, else itself.

    Raises Invalid when there is none, or it is of another family.
    """
    try:
        model = references.version(ref)
    except NotFound as exc:
        raise wrong(loc, exc.detail, code="unknown_model") from exc
    if model.family != family:
        raise wrong(loc, f"{model.ref} is a {model.family} model; name a {family} model or set family to it")
    if model.base is None:
        return model, model
    return model, references.version(model.base)


def dataset_of(references: References, ref: str) -> Dataset:
    """The dataset that ``input.dataset`` names. Raises Invalid."""
    try:
        return references.dataset(ref)
    except NotFound as exc:
        raise wrong(("input", "dataset"), exc.detail, code="unknown_dataset") from exc


def check_output_model(references: References, name: str, family: str) -> None:
    """Raises Invalid when the tenant cannot register a version of that family under ``input.output_model``."""
    if references.is_taken(name, Family(family)):
        raise wrong(
            ("input", "output_model"),
            f"{name!r} is a shared model or one of another family; choose another name",
        )


def megapixels(width: int, height: int) -> float:
    return width * height / 1e6
