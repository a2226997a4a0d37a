"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from calotype.cli.options import spread


@dataclass(frozen=True, kw_only=True)
class Common:
    """Two options."""

    size: Annotated[int, typer.Option("--size", "-s", min=1, help="How large.")] = 3
    tags: Annotated[list[str] | None, typer.Option("--tag")] = None


@pytest.fixture
def given() -> list[Any]:
    """What the command below was called with."""
    return []


@pytest.fixture
def app(given: list[Any]) -> typer.Typer:
    made = typer.Typer()

    @made.command()
    @spread
    def make(*, name: Annotated[str, typer.Option()], common: Common, loud: bool = False) -> None:
        """Makes one."""
        given.append((name, common, loud))

    return made


def test_a_command_has_the_options_of_the_dataclass_and_gets_their_values_in_it(
    app: typer.Typer, given: list[Any]
) -> None:
    asked = ["--name", "a", "-s", "7", "--tag", "x", "--tag", "y", "--loud"]
    assert CliRunner().invoke(app, asked).exit_code == 0
    assert given == [("a", Common(size=7, tags=["x", "y"]), True)]


def test_what_is_left_out_has_its_default(app: typer.Typer, given: list[Any]) -> None:
    assert CliRunner().invoke(app, ["--name", "a"]).exit_code == 0
    assert given == [("a", Common(), False)]


def test_bounds_and_required_options_hold(app: typer.Typer, given: list[Any]) -> None:
    assert CliRunner().invoke(app, ["--name", "a", "--size", "0"]).exit_code == 2
    assert CliRunner().invoke(app, ["--size", "1"]).exit_code == 2
    assert given == []


def test_the_help_shows_the_options_where_the_dataclass_stands(app: typer.Typer) -> None:
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "Makes one." in text and "How large." in text
    assert text.index("--name") < text.index("--size") < text.index("--tag") < text.index("--loud")
