"""From JSON to a typed request, or to an error that names the field and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from calotype.errors import FieldError, Invalid
from calotype.jobs import SERVED_QUEUES, Family, Kind, queue_name
from calotype.specs.benchmark import Benchmark
from calotype.specs.diffusion import DiffusionGenerate, DiffusionTrain
from calotype.specs.gan import GanGenerate
from calotype.specs.gan_train import GanTrain

JobRequest = DiffusionGenerate | DiffusionTrain | GanGenerate | GanTrain | Benchmark
_RequestClass = type[DiffusionGenerate] | type[DiffusionTrain] | type[GanGenerate] | type[GanTrain] | type[Benchmark]

_MODELS: dict[str, _RequestClass] = {
    "diffusion.generate": DiffusionGenerate,
    "diffusion.train": DiffusionTrain,
    "gan.generate": GanGenerate,
    "gan.train": GanTrain,
}


def parse(data: object) -> JobRequest:
    """Validates a request.

    Raises:
        Invalid: with one :class:`~calotype.errors.FieldError` a mistake; code ``family_unavailable`` when the
            product has a word for what is asked but this release has no code for it.
    """
    if not isinstance(data, Mapping):
        raise Invalid("The body must be a JSON object.", errors=[FieldError(loc=(), msg="must be a JSON object")])
    model = _model_for(data)
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise Invalid(errors=[_field_error(error, model) for error in exc.errors()]) from exc


def request_schemas() -> dict[str, Any]:
    """The JSON schema of every request, with ``$defs``, for the OpenAPI document."""
    adapter: TypeAdapter[Any] = TypeAdapter(JobRequest)
    return adapter.json_schema(ref_template="#/components/schemas/{model}")


def _model_for(data: Mapping[str, Any]) -> _RequestClass:
    kind = _word(data, "kind", [str(kind) for kind in Kind])
    if kind == Kind.BENCHMARK:
        _check_contender_families(data)
        return Benchmark
    family = _word(data, "family", [str(family) for family in Family])
    queue = queue_name(Family(family), Kind(kind))
    if queue not in _MODELS:
        raise _unavailable(family, kind, ("family",))
    return _MODELS[queue]


def _word(data: Mapping[str, Any], name: str, allowed: list[str]) -> str:
    value = data.get(name)
    if isinstance(value, str) and value in allowed:
        return value
    problem = f"{value!r} is not known" if name in data else "is missing"
    raise Invalid(errors=[FieldError(loc=(name,), msg=f"{problem}; choose one of {', '.join(allowed)}")])


def _check_contender_families(data: Mapping[str, Any]) -> None:
    """A family that this release cannot benchmark is named as such, not as a typing mistake."""
    spec = data.get("input")
    contenders = spec.get("contenders") if isinstance(spec, Mapping) else None
    for index, contender in enumerate(contenders if isinstance(contenders, list) else []):
        family = contender.get("family") if isinstance(contender, Mapping) else None
        if not isinstance(family, str) or family not in [str(member) for member in Family]:
            continue
        if queue_name(Family(family), Kind.BENCHMARK) not in SERVED_QUEUES:
            raise _unavailable(family, "benchmark", ("input", "contenders", index, "family"))


def _unavailable(family: str, kind: str, loc: tuple[str | int, ...]) -> Invalid:
    served = ", ".join(queue for queue in SERVED_QUEUES if queue.endswith(f".{kind}")) or "none"
    detail = f"This release has no code for {kind} jobs of the {family} family; served for this kind: {served}."
    return Invalid(detail, code="family_unavailable", errors=[FieldError(loc=loc, msg=detail)])


def _field_error(error: ErrorDetails, model: type[BaseModel]) -> FieldError:
    loc = tuple(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown field{_near(str(loc[-1]), _fields_at(model, loc[:-1]))}"
    elif error["type"] == "missing":
        message = "is required"
    elif loc[:1] != ("webhook",) and _is_short(error["input"]):  # a secret is not repeated
        message = f"{message}, got {error['input']!r}"
    return FieldError(loc=loc, msg=message)


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(repr(value)) < 80


def _near(name: str, fields: list[str]) -> str:
    near = difflib.get_close_matches(name, fields, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known here: {', '.join(fields)}" if fields else ""


def _fields_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> list[str]:
    """The field names of the object that ``loc`` leads to."""
    fields = model.model_fields
    for part in loc:
        if isinstance(part, int):
            continue
        nested = _model_in(fields[part].annotation) if part in fields else None
        if nested is None:
            return []
        fields = nested.model_fields
    return list(fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
