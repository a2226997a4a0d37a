"""Errors, as RFC 9457 has them."""

from __future__ import annotations

from pydantic import Field

from api.schemas.answers import Answer


class ProblemField(Answer):
    loc: list[str | int] = Field(description="Path of keys and indices into the request.")
    msg: str = Field(description="What is wrong and what to do about it.")


class ProblemError(Answer):
    """The same error in the shape that clients of generation APIs read."""

    message: str
    type: str
    code: str
    param: str | None


class Problem(Answer):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="Where the code is explained.")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for.")
    code: str = Field(description="Stable; what a program should look at.")
    errors: list[ProblemField] = Field(description="The wrong fields, for invalid requests.")
    error: ProblemError
