"""Reading requests: what is not understood is refused, never guessed at or repaired."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NoReturn, TypeVar, get_origin

from flask import request
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from api.errors import MalformedRequest, UnsupportedMediaType
from calotype.errors import FieldError, Invalid

#: The longest wait of a long poll or of ``Prefer: wait``, seconds.
MAX_WAIT_SECONDS = 60

JSON = "application/json"
NDJSON = "application/x-ndjson"

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT_PREFERENCE = re.compile(r"wait\s*=\s*\"?([^\";]*)\"?\s*(?:;.*)?", re.IGNORECASE)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")

ModelT = TypeVar("ModelT", bound=BaseModel)


class Query(BaseModel):
    """The query parameters of a call; any other is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Body(BaseModel):
    """A JSON body; a member it does not name is refused, and no type is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _digits(value: object) -> object:
    """Pydantic would read "1_0" and "1.0" as integers."""
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,18}", value):
        raise ValueError("must be a whole number")
    return value


def _rfc3339(value: object) -> object:
    """Pydantic would read "1700000000" as a time."""
    if isinstance(value, str) and not _RFC3339.fullmatch(value):
        raise ValueError("must be a time with an offset as in RFC 3339, e.g. 2026-01-31T12:00:00Z")
    return value


def _day(value: object) -> object:
    """Pydantic would read "1700000000" and "2026-01-31T00:00" as days."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("must be a day, e.g. 2026-01-31")
    return value


#: Parsers of query text that are stricter than pydantic's.
WholeNumber = BeforeValidator(_digits)
Rfc3339 = BeforeValidator(_rfc3339)
Day = BeforeValidator(_day)


def read_query(model: type[ModelT]) -> ModelT:
    """The query parameters of the present request.

    Raises:
        Invalid: an unknown parameter, one given twice, or a bad value.
    """
    values: dict[str, Any] = {}
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for name in request.args:
        given = request.args.getlist(name)
        field = known.get(name)
        if field is None:
            takes = ", ".join(known) or "none"
            _refuse(("query", name), f"is not a parameter of this call; it takes {takes}")
        repeated = get_origin(field.annotation) is list
        if len(given) > 1 and not repeated:
            _refuse(("query", name), "is given more than once")
        _check_storable(given, ("query", name))
        values[name] = given if repeated else given[0]
    return validated(model, values, prefix=("query",))


def read_json() -> Any:
    """The JSON body of the present request.

    Raises:
        UnsupportedMediaType: the body is not declared as UTF-8 JSON.
        MalformedRequest: it is not JSON, or it names a member twice.
        Invalid: it holds a text or number that cannot be stored.
    """
    _check_type(JSON)
    return parse_json(request.get_data(cache=False), "The body")


def read_lines(most: int) -> list[bytes]:
    """The lines of a body of JSON lines; empty ones are left out.

    Raises:
        UnsupportedMediaType: the body is not declared as UTF-8 JSON lines.
        Invalid: there is no line, or more than ``most``.
    """
    _check_type(NDJSON)
    lines = [line for line in request.get_data(cache=False).split(b"\n") if line.strip()]
    if not 1 <= len(lines) <= most:
        raise Invalid(f"The body must have 1 to {most} lines that are not empty; it has {len(lines)}.")
    return lines


def parse_json(data: bytes, what: str) -> Any:
    """JSON that a client sent; ``what`` names it in errors.

    Raises:
        MalformedRequest: it is not JSON, or it names a member twice.
        Invalid: it holds a text or number that cannot be stored.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_members, parse_constant=_not_a_number)
        _check_storable(value, ())
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise MalformedRequest(f"{what} is not valid JSON: {reason}.") from exc
    return value


def _check_type(wanted: str) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != wanted or charset not in {"utf-8", "utf8"}:
        given = request.headers.get("Content-Type") or "none"
        raise UnsupportedMediaType(f"Send the body as {wanted}; the content type given is {given[:100]}.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without a content encoding.")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member {twice[:100]!r} is there twice")
    return members


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _check_storable(value: Any, loc: tuple[str | int, ...]) -> None:
    """Refuses what JSON allows and Postgres cannot keep: NUL, half surrogate pairs, infinite numbers."""
    for at, leaf in _leaves(value, loc):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            _refuse(at, "is too large a number")
        if isinstance(leaf, str) and ("\x00" in leaf or any("\ud800" <= char <= "\udfff" for char in leaf)):
            _refuse(at, "holds a NUL or half of a surrogate pair, which no text may")


def _leaves(value: Any, loc: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield (loc, name)
            yield from _leaves(member, (*loc, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*loc, index))
    else:
        yield (loc, value)


def _refuse(loc: tuple[str | int, ...], msg: str) -> NoReturn:
    raise Invalid(errors=[FieldError(loc=loc, msg=msg)])


def read_body(model: type[ModelT]) -> ModelT:
    """The JSON body of the present request as ``model``; raises as :func:`read_json`, or Invalid."""
    return validated(model, read_json(), as_json=True)


def read_optional_body(model: type[ModelT]) -> ModelT:
    """Like :func:`read_body`, for calls whose body may be left out: all of its fields have defaults."""
    return read_body(model) if request.get_data().strip() else model()


def validated(model: type[ModelT], values: Any, *, prefix: tuple[str, ...] = (), as_json: bool = False) -> ModelT:
    """``values`` as ``model``, read as the texts of a query, or with ``as_json`` as JSON has its types.

    Raises:
        Invalid: names every wrong field.
    """
    try:
        if as_json:
            # Pydantic's JSON mode knows that JSON has no times or ids and still converts nothing else.
            return model.model_validate_json(json.dumps(values))
        return model.model_validate(values)
    except ValidationError as exc:
        errors = [
            FieldError(loc=(*prefix, *error["loc"]), msg=_message(error["type"], error["msg"]))
            for error in exc.errors(include_url=False, include_input=False)
        ]
        raise Invalid(errors=errors) from exc


def _message(kind: str, msg: str) -> str:
    if kind == "extra_forbidden":
        return "is not a field of this request"
    if kind == "missing":
        return "is required"
    text = msg.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def refuse_body() -> None:
    """For calls that take no body: an empty one, or an empty JSON object, is all they accept.

    Raises:
        Invalid: there is a body with something in it.
    """
    data = request.get_data(cache=False)
    if data.strip() not in {b"", b"{}"}:
        raise Invalid("This call takes no request body.")


def read_idempotency_key() -> str | None:
    """The ``Idempotency-Key`` header; Invalid when it is not 1 to 255 printable ASCII characters."""
    key = request.headers.get("Idempotency-Key")
    return check_idempotency_key(key, ("header", "Idempotency-Key")) if key is not None else None


def check_idempotency_key(key: object, loc: tuple[str | int, ...]) -> str:
    """The key as it is; Invalid when it is not 1 to 255 printable ASCII characters."""
    if not isinstance(key, str) or not _IDEMPOTENCY_KEY.fullmatch(key):
        _refuse(loc, "must be 1 to 255 printable ASCII characters without spaces")
    return key


def read_wait_preference() -> int | None:
    """Seconds of ``Prefer: wait=N``, or None. Other preferences are ignored, as RFC 7240 says.

    Raises:
        Invalid: N is not a whole number from 0 to 60.
    """
    for header in request.headers.getlist("Prefer"):
        for preference in header.split(","):
            match = _WAIT_PREFERENCE.fullmatch(preference.strip())
            if match is None:
                continue
            text = match[1].strip()
            if not re.fullmatch(r"\d{1,3}", text) or int(text) > MAX_WAIT_SECONDS:
                _refuse(
                    ("header", "Prefer"),
                    f"wait must be a whole number of seconds from 0 to {MAX_WAIT_SECONDS}",
                )
            return int(text)
    return None


WaitSeconds = Annotated[int, WholeNumber]
