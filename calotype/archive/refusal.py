"""How an archive is refused: a stable code, the file's name, what is wrong and what to do about it."""

from __future__ import annotations

from calotype.errors import FieldError, Invalid


def printable(name: str) -> str:
    """``name`` on one line with what cannot be shown escaped, at most 200 characters."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)
    return shown if len(shown) <= 200 else f"{shown[:199]}…"


def refusal(code: str, name: str | None, problem: str, remedy: str) -> Invalid:
    """The error for one file of an archive, or with ``name`` None for the archive as a whole.

    ``problem`` continues a sentence that begins with the name ("is a symbolic link"); ``remedy`` is a
    sentence of its own in the imperative ("Pack the file itself.").
    """
    message = f"{problem}. {remedy}"
    loc: tuple[str, ...] = ("file",) if name is None else ("file", printable(name))
    subject = "The archive" if name is None else f"'{printable(name)}'"
    return Invalid(f"{subject} {message}", errors=[FieldError(loc=loc, msg=message)], code=code)
