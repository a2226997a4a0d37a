"""The command line on why a job waits and what one would cost, against a real stack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Ended

Cli = Callable[..., "Ended"]


def test_explain_says_where_a_job_is(cli: Cli, tiny_model: str) -> None:
    job_id = cli("submit", "generate", "--model", tiny_model, "--prompt", "a bird").out.strip()
    cli("wait", job_id)

    words, found = cli("explain", job_id), cli("explain", job_id, "--json").json

    assert words.code == 0
    assert "succeeded" in words.out and "has ended" in words.out
    assert [reason["code"] for reason in found["reasons"]] == ["ended"]


def test_a_dry_run_prints_the_quote_and_submits_nothing(cli: Cli, tiny_model: str, tmp_path: Path) -> None:
    spec = {"kind": "generate", "family": "diffusion", "model": tiny_model, "input": {"prompt": "a bird"}}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    before = [job["id"] for job in cli("list", "--json").json]

    words = cli("submit", "generate", "--model", tiny_model, "--prompt", "a bird", "--dry-run")
    found = cli("submit", str(tmp_path / "job.json"), "--dry-run", "--json").json

    assert words.code == 0
    assert "nothing was submitted" in words.out and "GPU time" in words.out
    assert found["answered"] == "run" and found["gpu_seconds"]["least"] <= found["gpu_seconds"]["most"]
    assert [job["id"] for job in cli("list", "--json").json] == before


def test_a_dry_run_of_a_wrong_spec_fails_as_a_submission_does(cli: Cli, tiny_model: str) -> None:
    ended = cli("submit", "generate", "--model", tiny_model, "--prompt", "a bird", "--width", "61", "--dry-run")

    assert ended.code == 1
    assert "width" in ended.err


def test_explaining_an_unknown_job_fails_with_a_message(cli: Cli) -> None:
    ended = cli("explain", "0190a000-0000-7000-8000-000000000000")

    assert ended.code == 1
    assert "There is no job" in ended.err
