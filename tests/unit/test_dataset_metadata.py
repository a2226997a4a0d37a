"""What `metadata.jsonl` may say."""

from __future__ import annotations

import json

import pytest

from calotype.datasets.metadata import Line, parse
from calotype.errors import Invalid


def lines(text: str) -> list[Line]:
    return list(parse(text.encode()))


def refused(data: bytes | str) -> Invalid:
    with pytest.raises(Invalid) as caught:
        list(parse(data.encode() if isinstance(data, str) else data))
    return caught.value


def test_a_line_gives_caption_and_label() -> None:
    (line,) = lines('{"file_name": "./a/b.png", "text": "a blue bird", "label": "blue"}')
    assert (line.file_name, line.text, line.label) == ("a/b.png", "a blue bird", "blue")


def test_captions_and_labels_may_be_missing_or_null() -> None:
    first, second = lines('{"file_name": "a.png"}\n\n{"file_name": "b.png", "text": null, "label": null}\n')
    assert (first.text, first.label, second.text, second.label) == (None, None, None, None)
    assert second.number == 3


def test_a_class_number_is_kept_as_text() -> None:
    assert [line.label for line in lines('{"file_name": "a.png", "label": 7}')] == ["7"]


def test_further_columns_are_kept() -> None:
    (line,) = lines('{"file_name": "a.png", "text": "x", "title": "Bird", "year": 2024, "caption": "y"}')
    assert line.extra == {"title": "Bird", "year": 2024, "caption": "y"}


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    found = list(parse(b'\xef\xbb\xbf{"file_name": "a.png"}\r\n{"file_name": "b.png"}\r\n'))
    assert [line.file_name for line in found] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"file_name": "a.png"', "is not JSON"),
        ('["a.png"]', "not a JSON object"),
        ("[" * 60_000, "is not JSON"),
        ('{"file_name": "a.png", "weight": NaN}', "is not JSON"),
        ('{"file_name": "a.png", "text": "x", "text": "y"}', "given twice"),
        ('{"text": "x"}', "no 'file_name'"),
        ('{"file_name": 5}', "no 'file_name'"),
        ('{"file_name": "a.png", "text": 5}', "'text' that is no string"),
        ('{"file_name": "a.png", "text": "  "}', "empty 'text'"),
        ('{"file_name": "a.png", "label": true}', "'label' that is no string"),
        (json.dumps({"file_name": "a.png", "text": "x" * 4001}), "4001 characters"),
        (json.dumps({"file_name": "a.png", "label": "x" * 101}), "101 characters"),
        (json.dumps({"file_name": "a.png", "text": "one\ntwo"}), "control character in 'text'"),
        (json.dumps({"file_name": "a.png", "label": "a\0b"}), "control character in 'label'"),
        ('{"file_name": "a.png", "text": "\\ud800"}', "control character in 'text'"),
        (json.dumps({"file_name": "a.png", "note": "\x1b[31m"}), "control character in 'note'"),
        ('{"file_name": "a.png", "tags": ["x"]}', "'tags' that is a list"),
        ('{"file_name": "a.png", "lable": "x"}', "Did you mean 'label'?"),
        ('{"file_name": "a.png", "caption": "x"}', "Did you mean 'text'?"),
        ('{"filename": "a.png"}', "Did you mean 'file_name'?"),
        ('{"file_name": "a.png", "width": "64"}', "'width' that is no int"),
        (json.dumps({"file_name": "a.png", "note": "x" * 70_000}), "64 KiB"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, said: str) -> None:
    error = refused('{"file_name": "first.png"}\n' + line)
    assert error.code == "metadata_invalid"
    assert "'metadata.jsonl' line 2" in error.detail
    assert said in error.detail
    assert error.errors[0].loc == ("file", "metadata.jsonl", 2)


def test_text_that_is_not_utf8_is_refused() -> None:
    assert "not UTF-8" in refused(b'{"file_name": "a.png", "text": "\xff"}').detail


def test_an_image_described_twice_is_refused() -> None:
    error = refused('{"file_name": "a.png"}\n{"file_name": "./a.png"}')
    assert error.code == "metadata_invalid"
    assert "'a.png' again, after line 1" in error.detail


def test_a_file_name_that_climbs_out_is_refused() -> None:
    error = refused('{"file_name": "../a.png"}')
    assert error.code == "path_escapes"
    assert "../a.png" in error.detail
