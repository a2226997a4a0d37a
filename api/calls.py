"""What a call is: one decorator says what it needs, enforces it, and is what `/openapi.json` tells.

Since the documented scope, query and body are the very ones that are checked, the document cannot drift
from the code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import g, request
from flask.typing import ResponseReturnValue
from pydantic import BaseModel

from api import auth, reading
from api.services import services
from calotype.errors import NotFound
from calotype.tenants import Scope

View = Callable[..., ResponseReturnValue]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A body that the call accepts as it stands."""

    #: An identifier, e.g. ``generate``.
    name: str
    summary: str
    value: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class JsonBody:
    """A JSON request body. ``parse`` gives the view its ``body`` argument."""

    #: What the document shows: a pydantic type, discriminated unions included.
    schema: Any
    parse: Callable[[], Any]
    examples: Sequence[Example]
    #: With JSON lines the schema is that of a line.
    media_type: str = reading.JSON
    required: bool = True

    @classmethod
    def of(cls, model: type[BaseModel], *examples: Example, required: bool = True) -> JsonBody:
        read = reading.read_body if required else reading.read_optional_body
        return cls(schema=model, parse=functools.partial(read, model), examples=examples, required=required)


@dataclass(frozen=True, kw_only=True)
class UploadBody:
    """A multipart body with one file; the view reads it by itself, since it goes to disk."""

    #: Names of the form's text fields, with what they say.
    fields: Mapping[str, str]
    #: Name of the file part, with what it holds.
    file: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A successful answer."""

    status: int
    description: str
    #: Of the body; None for an empty one or one that is not JSON.
    model: Any = None
    media_type: str | None = None
    #: Other media types in which the same is answered to those who accept them.
    others: Sequence[str] = ()
    #: Header name to meaning.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One call of the API, as enforced and as documented."""

    tag: str
    summary: str
    description: str
    scope: Scope | None
    query: type[BaseModel]
    #: Request header name to meaning.
    headers: Mapping[str, str]
    body: JsonBody | None
    upload: UploadBody | None
    answers: Sequence[Answer]
    #: Codes of what can go wrong beside what can go wrong with every such call.
    codes: Sequence[str]


def call(
    tag: str,
    summary: str,
    *,
    answers: Sequence[Answer],
    scope: Scope | None = None,
    description: str = "",
    query: type[BaseModel] = reading.Query,
    headers: Mapping[str, str] | None = None,
    body: JsonBody | None = None,
    upload: UploadBody | None = None,
    codes: Sequence[str] = (),
) -> Callable[[View], View]:
    """Declares a view. In this order: key and scope (401, 403), query, body.

    The view is called with the path's parameters, ``query`` when ``query`` has parameters, and ``body`` when
    there is a JSON body. Where a call takes a JSON body or an upload, ``body`` is None for the upload.
    """
    operation = Operation(
        tag=tag,
        summary=summary,
        description=description,
        scope=scope,
        query=query,
        headers=headers or {},
        body=body,
        upload=upload,
        answers=answers,
        codes=codes,
    )

    return lambda view: _checked(view, operation)


def _checked(view: View, operation: Operation) -> View:
    @functools.wraps(view)
    def checked(**path: str) -> ResponseReturnValue:
        if operation.scope is not None:
            g.principal = auth.authenticate()
            auth.require(g.principal, operation.scope)
        if any("\x00" in part for part in path.values()):
            raise NotFound("Nothing has a name with a NUL in it.")
        arguments: dict[str, Any] = dict(path)
        parsed = reading.read_query(operation.query)
        if operation.query.model_fields:
            arguments["query"] = parsed
        _read_body_into(arguments, operation)
        return view(**arguments)

    checked.operation = operation  # type: ignore[attr-defined]
    return checked


def _read_body_into(arguments: dict[str, Any], operation: Operation) -> None:
    if operation.upload is not None and request.mimetype == "multipart/form-data":
        # The form around the file takes a little room, too.
        request.max_content_length = services().settings.max_upload_bytes + (1 << 16)
        arguments["body"] = None
    elif operation.body is not None:
        arguments["body"] = operation.body.parse()
    elif request.method in {"POST", "PATCH"}:
        reading.refuse_body()


def operation_of(view: Any) -> Operation | None:
    """What :func:`call` declared for a view; None for views that are not part of the API."""
    return getattr(view, "operation", None)
