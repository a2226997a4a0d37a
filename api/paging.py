"""Cursors: opaque to clients, and good only for the list they came from."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

from flask import Response
from pydantic import BaseModel, Field

from api import schemas, serialize
from api.reading import Query, WholeNumber
from calotype.errors import FieldError, Invalid

ItemT = TypeVar("ItemT")

DEFAULT_LIMIT = 20
MAX_LIMIT = 100


class PageQuery(Query):
    """The parameters of every list."""

    limit: Annotated[int, WholeNumber] = Field(default=DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Items a page.")
    cursor: str | None = Field(
        default=None, description="`next_cursor` of the page before. Keep the other parameters as they were."
    )


def encode(position: str, query: BaseModel) -> str:
    """The cursor that continues the list of ``query`` after ``position``."""
    text = json.dumps([position, _fingerprint(query)], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(query: PageQuery) -> str | None:
    """The position that the cursor of ``query`` stands for; None for the first page.

    Raises:
        Invalid: it is no cursor of ours, or it belongs to a list with other filters.
    """
    if query.cursor is None:
        return None
    try:
        padded = query.cursor + "=" * (-len(query.cursor) % 4)
        position, fingerprint = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError, binascii.Error) as exc:
        raise refused() from exc
    if not isinstance(position, str) or not position.isprintable():
        raise refused()
    if fingerprint != _fingerprint(query):
        raise refused("belongs to a list with other filters; keep the parameters or start without a cursor")
    return position


def answer(
    items: Iterable[ItemT],
    query: PageQuery,
    *,
    key: Callable[[ItemT], str],
    render: Callable[[ItemT], BaseModel],
    descending: bool = False,
) -> Response:
    """One page of a list that is short enough to be read whole, ordered by ``key``, which must be unique.

    A cursor names the key of the last item, so that items which come or go meanwhile shift nothing.
    """
    after = decode(query)
    ordered = sorted(items, key=key, reverse=descending)
    if after is not None:
        ordered = [item for item in ordered if (key(item) < after if descending else key(item) > after)]
    page = ordered[: query.limit]
    has_more = len(ordered) > len(page)
    body = schemas.Page[Any](
        data=[render(item) for item in page],
        has_more=has_more,
        next_cursor=encode(key(page[-1]), query) if has_more else None,
    )
    return serialize.answer(body)


def _fingerprint(query: BaseModel) -> str:
    filters = query.model_dump_json(exclude={"cursor", "limit"})
    return hashlib.sha256(f"{type(query).__name__}{filters}".encode()).hexdigest()[:12]


def refused(msg: str = "is not a cursor of this API; give `next_cursor` as it was answered") -> Invalid:
    """The error for a cursor that cannot be used."""
    return Invalid(errors=[FieldError(loc=("query", "cursor"), msg=msg)])
