"""``metadata.jsonl``: one JSON object a line, with ``file_name`` and perhaps ``text`` and ``label``."""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from calotype.archive import printable, safe_name
from calotype.errors import FieldError, Invalid

FILE_NAME = "metadata.jsonl"
MAX_BYTES = 64 << 20
MAX_LINE_BYTES = 64 << 10
MAX_TEXT = 4_000
MAX_LABEL = 100
#: Facts that an exported dataset carries and that are checked against the images when it comes back.
FACTS = {"width": int, "height": int, "sha256": str}
_KNOWN = ("file_name", "text", "label")
#: Names that captions go by elsewhere.
_CAPTION_NAMES = frozenset({"caption", "captions", "prompt", "description"})


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one line says of one image."""

    #: Counted from 1.
    number: int
    #: Safe and relative, as in the archive.
    file_name: str
    text: str | None
    label: str | None
    #: Claimed width, height or sha256.
    facts: Mapping[str, int | str] = field(default_factory=dict)
    #: Further columns; kept, not used.
    extra: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)


def parse(data: bytes) -> Iterator[Line]:
    """Yields the lines of a ``metadata.jsonl``; empty lines are skipped.

    Raises:
        Invalid: metadata_invalid, naming the line; path_escapes or name_invalid for a bad ``file_name``.
    """
    if len(data) > MAX_BYTES:
        raise problem(None, f"has more than {MAX_BYTES >> 20} MiB", "Shorten the captions or split the dataset.")
    seen: dict[str, int] = {}
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            line = _line(number, raw)
            if line.file_name in seen:
                raise problem(
                    number,
                    f"describes '{printable(line.file_name)}' again, after line {seen[line.file_name]}",
                    "Keep one of the two.",
                )
            seen[line.file_name] = number
            yield line


def problem(number: int | None, what: str, remedy: str) -> Invalid:
    """The error for one line, or for the file as a whole."""
    where = f"'{FILE_NAME}'" if number is None else f"'{FILE_NAME}' line {number}"
    loc: tuple[str | int, ...] = ("file", FILE_NAME) if number is None else ("file", FILE_NAME, number)
    message = f"{what}. {remedy}"
    return Invalid(f"{where} {message}", errors=[FieldError(loc=loc, msg=message)], code="metadata_invalid")


def _line(number: int, raw: bytes) -> Line:
    row = _object(number, raw)
    _check_keys(number, row)
    file_name = row.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise problem(number, "has no 'file_name'", 'Write {"file_name": "…"} with the name of an image.')
    label = row.get("label")
    # Class numbers are common; they are kept as the text they are written as.
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    return Line(
        number=number,
        file_name=safe_name(file_name),
        text=_words(number, "text", row.get("text"), MAX_TEXT),
        label=_words(number, "label", label, MAX_LABEL),
        facts={key: _fact(number, key, row[key]) for key in FACTS if key in row},
        extra={key: _extra(number, key, row[key]) for key in row if key not in _KNOWN and key not in FACTS},
    )


def _object(number: int, raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise problem(number, f"has more than {MAX_LINE_BYTES >> 10} KiB", "Shorten it.")
    try:
        row = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as exc:
        raise problem(number, "is not UTF-8", "Save the file as UTF-8.") from exc
    except (ValueError, RecursionError) as exc:
        raise problem(number, f"is not JSON ({exc})", "Write one JSON object a line.") from exc
    if not isinstance(row, dict):
        raise problem(number, "is not a JSON object", 'Write {"file_name": "…", "text": "…"}.')
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key is given twice")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _check_keys(number: int, row: Mapping[str, Any]) -> None:
    """Further columns are welcome, but a misspelt one would lose captions without a word."""
    for key in row:
        if key in _KNOWN or key in FACTS:
            continue
        near = difflib.get_close_matches(key, _KNOWN, n=1, cutoff=0.8)
        if not near and key in _CAPTION_NAMES and "text" not in row:
            near = ["text"]
        if near and near[0] not in row:
            raise problem(number, f"has a key '{printable(key)}'", f"Did you mean '{near[0]}'?")


def _words(number: int, key: str, value: object, most: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise problem(number, f"has a '{key}' that is no string", "Write it in quotes.")
    if not value.strip():
        raise problem(number, f"has an empty '{key}'", "Leave it out instead.")
    if len(value) > most:
        raise problem(number, f"has a '{key}' of {len(value)} characters", f"At most {most} are taken.")
    _check_characters(number, key, value)
    return value


def _check_characters(number: int, key: str, value: str) -> None:
    # Cs: half of a surrogate pair, which JSON can spell and nothing can store.
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in value):
        shown = printable(key)
        raise problem(number, f"has a control character in '{shown}'", "Remove line breaks, tabs and the like.")


def _fact(number: int, key: str, value: object) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)) or not isinstance(value, FACTS[key]):
        raise problem(number, f"has a '{key}' that is no {FACTS[key].__name__}", "Correct it or leave it out.")
    return value


def _extra(number: int, key: str, value: object) -> str | int | float | bool | None:
    shown = printable(key)
    if not (value is None or isinstance(value, (str, int, float))):
        raise problem(number, f"has a '{shown}' that is a list or an object", "Leave it out.")
    _check_characters(number, key, key)
    if isinstance(value, str):
        _check_characters(number, key, value)
    return value
