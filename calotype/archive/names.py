"""Names of files in an archive: which are safe, and which are litter."""

from __future__ import annotations

import re
import unicodedata

from calotype.archive.refusal import refusal

#: Longest name and longest part of one, in bytes of UTF-8; what common file systems hold.
MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255
MAX_DEPTH = 16

_DRIVE = re.compile(r"[A-Za-z]:")
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def safe_name(raw: str) -> str:
    """The one form under which an archive's file is known: relative, ``/`` between parts, Unicode NFC.

    ``./`` and doubled slashes are dropped, since every tool treats them as nothing; NFC, because macOS writes
    names decomposed while metadata is usually typed composed. Gives ``""`` for the archive's own top folder.

    Raises:
        Invalid: ``path_escapes`` for a name that could point outside the archive's folder on any system;
            ``name_invalid`` for one that is too long, too deep, not UTF-8 or holds control characters.
    """
    parts = [part for part in unicodedata.normalize("NFC", raw).split("/") if part not in ("", ".")]
    problem = _escape(raw, parts)
    if problem is not None:
        raise refusal("path_escapes", raw, problem, "Pack the files with names relative to their own folder.")
    problem = _flaw(raw, parts)
    if problem is not None:
        raise refusal("name_invalid", raw, problem, "Rename the file and pack again.")
    return "/".join(parts)


def is_litter(name: str) -> bool:
    """Whether a (safe) name is what file managers leave behind: quietly ignored."""
    parts = name.split("/")
    return parts[0] == "__MACOSX" or parts[-1] in _LITTER or parts[-1].startswith("._")


def _escape(raw: str, parts: list[str]) -> str | None:
    if "\0" in raw:
        return "has a NUL character in its name"
    if "\\" in raw:
        return "has a backslash in its name, which is a path on Windows"
    if raw.startswith("/"):
        return "is an absolute path"
    if parts and _DRIVE.match(parts[0]):
        return "begins with a drive letter"
    if ".." in parts:
        return "climbs out of the archive with '..'"
    return None


def _flaw(raw: str, parts: list[str]) -> str | None:
    if any(0xD800 <= ord(char) <= 0xDFFF for char in raw):
        return "has a name that is not UTF-8"
    if any(unicodedata.category(char) == "Cc" for char in raw):
        return "has a control character in its name"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts) or len("/".join(parts).encode()) > MAX_NAME_BYTES:
        return f"has too long a name (at most {MAX_PART_BYTES} bytes a part, {MAX_NAME_BYTES} in all)"
    if len(parts) > MAX_DEPTH:
        return f"lies more than {MAX_DEPTH} folders deep"
    return None
