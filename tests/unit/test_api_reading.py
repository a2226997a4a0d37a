"""What the API reads from a request, and what it refuses to guess at."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from flask import Flask
from pydantic import AwareDatetime, Field

from api import paging, reading
from api.errors import MalformedRequest, UnsupportedMediaType
from calotype.errors import Invalid


class _Query(reading.Query):
    count: Annotated[int, reading.WholeNumber] = Field(default=1, ge=0)
    states: list[str] = Field(default_factory=list)
    since: Annotated[AwareDatetime, reading.Rfc3339] | None = None


class _Body(reading.Body):
    name: str
    weight: float = 1.0
    at: AwareDatetime | None = None


@pytest.fixture
def app() -> Flask:
    return Flask("test")


@pytest.fixture
def body(app: Flask) -> Iterator[Any]:
    """Reads a JSON body as a call would."""

    def read(data: bytes, content_type: str = "application/json", **headers: str) -> Any:
        with app.test_request_context("/", method="POST", data=data, content_type=content_type, headers=headers):
            return reading.read_json()

    return read  # type: ignore[return-value]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'\xff{"a": 1}',
        b"[" * 100_000,
        b"1" * 5_000,
        b'{"a": 1} trailing',
    ],
)
def test_a_body_that_is_not_plain_json_is_malformed(body: Any, data: bytes) -> None:
    with pytest.raises(MalformedRequest):
        body(data)


def test_a_body_nested_as_deep_as_can_just_be_parsed_is_malformed_or_read(body: Any) -> None:
    # What the parser of JSON still takes may be too deep for what looks at it next.
    for depth in range(800, 1000):
        try:
            body(b"[" * depth + b"]" * depth)
        except MalformedRequest:
            break
    else:
        pytest.fail("no depth was too much")


@pytest.mark.parametrize(
    ("data", "loc"),
    [
        (b'{"a": {"b": ["x\\u0000"]}}', ("a", "b", 0)),
        (b'{"a": "\\ud800"}', ("a",)),
        (b'{"a": 1e999}', ("a",)),
        (b'{"a\\u0000": 1}', ()),
    ],
)
def test_text_and_numbers_that_cannot_be_stored_are_refused(body: Any, data: bytes, loc: tuple[object, ...]) -> None:
    with pytest.raises(Invalid) as caught:
        body(data)
    assert caught.value.errors[0].loc == loc


@pytest.mark.parametrize(
    "content_type",
    ["text/plain", "", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
def test_only_utf8_json_is_taken_as_json(body: Any, content_type: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        body(b"{}", content_type)


def test_a_content_encoding_is_refused(body: Any) -> None:
    with pytest.raises(UnsupportedMediaType):
        body(b"{}", **{"Content-Encoding": "gzip"})


@pytest.mark.parametrize(
    ("text", "loc"),
    [
        ("colour=red", ("query", "colour")),
        ("count=1&count=2", ("query", "count")),
        ("count=1.0", ("query", "count")),
        ("count=1_0", ("query", "count")),
        ("count=%201", ("query", "count")),
        ("count=", ("query", "count")),
        ("count=-1", ("query", "count")),
        ("since=1700000000", ("query", "since")),
        ("since=2026-01-01T00:00:00", ("query", "since")),
        ("since=2026-13-01T00:00:00Z", ("query", "since")),
        ("states=%00", ("query", "states", 0)),
    ],
)
def test_a_wrong_query_parameter_is_named(app: Flask, text: str, loc: tuple[object, ...]) -> None:
    with app.test_request_context(f"/?{text}"), pytest.raises(Invalid) as caught:
        reading.read_query(_Query)
    assert caught.value.errors[0].loc[: len(loc)] == loc


def test_a_list_parameter_may_be_repeated(app: Flask) -> None:
    with app.test_request_context("/?states=a&states=b&since=2026-01-01T00:00:00%2B02:00"):
        query = reading.read_query(_Query)
    assert query.states == ["a", "b"]
    assert query.since is not None
    assert query.since.utcoffset() is not None


@pytest.mark.parametrize(
    ("data", "loc"),
    [
        (b"[]", ()),
        (b"{}", ("name",)),
        (b'{"name": 1}', ("name",)),
        (b'{"name": "x", "weight": "2"}', ("weight",)),
        (b'{"name": "x", "colour": 1}', ("colour",)),
        (b'{"name": "x", "at": 1700000000}', ("at",)),
    ],
)
def test_a_body_is_read_without_converting_types(app: Flask, data: bytes, loc: tuple[object, ...]) -> None:
    with (
        app.test_request_context("/", method="POST", data=data, content_type="application/json"),
        pytest.raises(Invalid) as caught,
    ):
        reading.read_body(_Body)
    assert caught.value.errors[0].loc == loc


def test_a_body_may_hold_times_as_text(app: Flask) -> None:
    data = b'{"name": "x", "at": "2026-01-01T00:00:00Z"}'
    with app.test_request_context("/", method="POST", data=data, content_type="application/json"):
        assert reading.read_body(_Body).at is not None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, wait=60", 60),
        ("respond-async", None),
        ("wait = 7", 7),
        ('wait="3"', 3),
    ],
)
def test_the_wait_preference_is_found_among_others(app: Flask, header: str, seconds: int | None) -> None:
    with app.test_request_context("/", headers={"Prefer": header}):
        assert reading.read_wait_preference() == seconds


@pytest.mark.parametrize("header", ["wait=61", "wait=-1", "wait=soon", "wait=", "wait=1.5"])
def test_an_impossible_wait_is_refused(app: Flask, header: str) -> None:
    with app.test_request_context("/", headers={"Prefer": header}), pytest.raises(Invalid):
        reading.read_wait_preference()


@pytest.mark.parametrize("key", ["", "two words", "ü", "x" * 256])
def test_an_impossible_idempotency_key_is_refused(app: Flask, key: str) -> None:
    with app.test_request_context("/", headers={"Idempotency-Key": key}), pytest.raises(Invalid):
        reading.read_idempotency_key()


class _Page(paging.PageQuery):
    state: str | None = None


def test_a_cursor_comes_back_as_the_position_it_was_made_of() -> None:
    first = _Page(state="queued", limit=10)
    second = _Page(state="queued", limit=50, cursor=paging.encode("here", first))
    assert paging.decode(second) == "here"


def test_a_cursor_is_refused_under_other_filters() -> None:
    cursor = paging.encode("here", _Page(state="queued"))
    with pytest.raises(Invalid, match="other filters"):
        paging.decode(_Page(state="running", cursor=cursor))


@pytest.mark.parametrize("cursor", ["", "x", "!!", "bnVsbA", "W10", "WzEsMl0", "eyJhIjoxfQ", "ü"])
def test_a_cursor_that_is_not_ours_is_refused(cursor: str) -> None:
    with pytest.raises(Invalid, match="cursor"):
        paging.decode(_Page(cursor=cursor))


def test_a_cursor_of_nothing_but_brackets_is_refused() -> None:
    # As many as fit into a request line.
    cursor = base64.urlsafe_b64encode(b"[" * 3_000).decode()
    with pytest.raises(Invalid, match="cursor"):
        paging.decode(_Page(cursor=cursor))
