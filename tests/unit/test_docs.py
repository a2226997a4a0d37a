"""Documents that cannot rot: each is compared with what it speaks of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from calotype.jobs import TERMINAL, TRANSITIONS, State

ROOT = Path(__file__).parents[2]
#: What the tree in architecture.md need not name: plumbing that every Python package has.
UNNAMED = {"__init__.py", "__main__.py", "__pycache__", "py.typed", "env.py", "script.py.mako"}


def _read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_the_state_machine_page_lists_exactly_the_transitions() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\w+) \| (\w+) \| (.+) \|$", _read("docs/state_machine.md"), re.M)
    written = [(one.name, str(one.source or "(new)"), str(one.target), one.by, one.when) for one in TRANSITIONS]
    assert rows == written


def test_every_state_can_be_reached_and_only_terminal_ones_are_ends() -> None:
    assert {one.target for one in TRANSITIONS} == set(State)
    assert set(State) - {one.source for one in TRANSITIONS} == TERMINAL


def _tree() -> list[str]:
    block = re.search(r"## Where things are.*?```\n(.*?)```", _read("docs/architecture.md"), re.S)
    assert block is not None
    paths, parent = [], ""
    for line in block[1].splitlines():
        name = line.split()[0]
        if line.startswith("  "):
            paths.append(parent + name)
        else:
            parent = name
            paths.append(name)
    return paths


@pytest.mark.parametrize("path", _tree())
def test_what_the_architecture_page_names_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_module_of_the_core_is_named_in_the_architecture_page() -> None:
    named = {path.removeprefix("calotype/").rstrip("/") for path in _tree() if path.startswith("calotype/")}
    present = {path.name for path in (ROOT / "calotype").iterdir()} - UNNAMED
    assert present == named - {""}


def test_every_make_target_that_the_readme_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", _read("Makefile"), re.M))
    named = set(re.findall(r"(?:\$ |`)make ([a-z]+)", _read("README.md")))
    assert {"demo", "test"} <= named <= targets


def test_every_make_target_explains_itself() -> None:
    makefile = _read("Makefile")
    for target in ("demo", "test", "check", "up", "bench"):
        assert re.search(rf"^{target}:.*## \w+", makefile, re.M)


@pytest.mark.parametrize(
    "page", [*sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")), "README.md"]
)
def test_links_between_documents_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", _read(page)):
        assert ((ROOT / page).parent / target).exists(), target


def test_ci_runs_the_checks_and_the_tests() -> None:
    script = _read(".ci/run")
    assert re.search(r"^make check$", script, re.M) and re.search(r"^make test$", script, re.M)
