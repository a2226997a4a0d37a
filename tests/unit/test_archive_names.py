"""Names from an archive can never point outside the folder they are meant for."""

from __future__ import annotations

import posixpath
import unicodedata
from pathlib import PureWindowsPath

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from calotype.archive import printable, safe_name
from calotype.errors import Invalid

_PARTS = st.sampled_from(["..", ".", "", "a", "b.png", "C:", "c:x", "\\", "..\\..", "~", "con", "\0", "ü", " "])
_NAMES = st.one_of(st.lists(_PARTS, max_size=6).map("/".join), st.text(max_size=40))


@settings(max_examples=100, deadline=None)
@given(_NAMES)
@example("a/../../b")
@example("..")
@example("/")
@example("./C:")
@example("\udc80")
def test_a_safe_name_stays_inside_and_is_its_own_safe_name(raw: str) -> None:
    try:
        name = safe_name(raw)
    except Invalid as error:
        assert error.code in ("path_escapes", "name_invalid")
        assert printable(raw) in error.detail
        assert printable(error.detail[:150]) == error.detail[:150]
        return
    assert posixpath.normpath(posixpath.join("/root", name)) == posixpath.join("/root", name).rstrip("/")
    windows = PureWindowsPath(name)
    assert not windows.drive
    assert not windows.root
    assert ".." not in windows.parts
    assert name == unicodedata.normalize("NFC", name)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("./a.png", "a.png"),
        ("a//b.png", "a/b.png"),
        ("a/./b/", "a/b"),
        ("./", ""),
        ("u\u0308.png", "\u00fc.png"),
    ],
)
def test_what_means_nothing_is_dropped_from_a_name(raw: str, name: str) -> None:
    assert safe_name(raw) == name


def test_a_hostile_name_is_shown_on_one_short_line() -> None:
    assert printable("a\n\x1b[31mb\u202e") == "a\\n\\x1b[31mb\\u202e"
    assert len(printable("x" * 5000)) == 200
