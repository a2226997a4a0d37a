"""``dataset.json``: the labels of a dataset in the form that NVIDIA's GAN tools write.

One JSON object with ``labels``: a list of ``[file name, class]``, one for each image, or null when there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from calotype.archive import printable, safe_name
from calotype.datasets.metadata import MAX_LABEL
from calotype.errors import FieldError, Invalid

FILE_NAME = "dataset.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What one entry of ``labels`` says of one image."""

    #: Counted from 1.
    number: int
    #: Safe and relative, as in the archive.
    file_name: str
    label: str


def parse(data: bytes) -> list[Entry] | None:
    """The entries of a ``dataset.json``; None when it says that there are no labels.

    Classes are numbers or texts, all of one kind; a number is kept as the text it is written as.

    Raises:
        Invalid: metadata_invalid, naming the entry; path_escapes or name_invalid for a bad file name.
    """
    labels = _labels(data)
    if labels is None:
        return None
    if not isinstance(labels, list):
        raise problem(None, "has 'labels' that are no list", 'Write [["a.png", 0], …], or null for none.')
    entries, kinds = list(_entries(labels)), {type(entry[1]) for entry in labels}
    if len(kinds) > 1:
        odd = next(entry.number for entry, (_, label) in zip(entries, labels, strict=True) if type(label) is str)
        raise problem(odd, "has a class by name, and others have class numbers", "Use one kind for all images.")
    return entries


def problem(number: int | None, what: str, remedy: str) -> Invalid:
    """The error for one entry of ``labels``, or for the file as a whole."""
    where = f"'{FILE_NAME}'" if number is None else f"'{FILE_NAME}' label {number}"
    loc: tuple[str | int, ...] = ("file", FILE_NAME) if number is None else ("file", FILE_NAME, number)
    message = f"{what}. {remedy}"
    return Invalid(f"{where} {message}", errors=[FieldError(loc=loc, msg=message)], code="metadata_invalid")


def _labels(data: bytes) -> Any:
    try:
        content = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise problem(None, "is not UTF-8", "Save the file as UTF-8.") from exc
    except (ValueError, RecursionError) as exc:
        raise problem(None, f"is not JSON ({exc})", 'Write {"labels": [["a.png", 0], …]}.') from exc
    if not isinstance(content, dict) or "labels" not in content:
        remedy = 'Write {"labels": [["a.png", 0], …]}, or {"labels": null} for images without labels.'
        raise problem(None, "has no 'labels'", remedy)
    return content["labels"]


def _entries(labels: list[Any]) -> Iterator[Entry]:
    seen: dict[str, int] = {}
    for number, pair in enumerate(labels, start=1):
        entry = _entry(number, pair)
        if entry.file_name in seen:
            shown, first = printable(entry.file_name), seen[entry.file_name]
            raise problem(number, f"is for '{shown}' again, after label {first}", "Keep one of the two.")
        seen[entry.file_name] = number
        yield entry


def _entry(number: int, pair: Any) -> Entry:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str) or not pair[0]:
        raise problem(number, "is no pair of a file name and a class", 'Write ["a.png", 0].')
    name, label = pair
    if isinstance(label, list):
        remedy = "Only classes are taken: give the number or the name of one."
        raise problem(number, f"is a list of values for '{printable(name)}'", remedy)
    if type(label) not in (int, str):
        raise problem(number, "has a class that is neither a whole number nor a text", "Write one of the two.")
    words = str(label)
    if not words.strip() or len(words) > MAX_LABEL or not words.isprintable():
        raise problem(
            number, "has a class that is empty, too long or not printable", f"At most {MAX_LABEL} characters are taken."
        )
    return Entry(number=number, file_name=safe_name(name), label=words)
