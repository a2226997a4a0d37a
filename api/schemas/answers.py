"""What every answer is made of: frozen models, and pages of lists."""

from __future__ import annotations

from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

ItemT = TypeVar("ItemT")


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Page(Answer, Generic[ItemT]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    has_more: bool = Field(description="Whether there is another page.")
    next_cursor: str | None = Field(description="Give it as `cursor` to get the next page; null on the last.")
