"""The command line on jobs, against a real stack."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calotype.local.modules import module_argv, module_environment

if TYPE_CHECKING:
    from tests.conftest import Ended, RunningUp

Cli = Callable[..., "Ended"]


@pytest.fixture
def submitted(cli: Cli, tiny_model: str) -> Callable[..., dict[str, Any]]:
    """A submitted generate job; takes further options of `submit generate`."""

    def submit(*options: str) -> dict[str, Any]:
        arguments = ("submit", "generate", "--model", tiny_model, "--prompt", "a bird", "--json", *options)
        job: dict[str, Any] = cli(*arguments).json
        return job

    return submit


def test_submit_prints_the_id_and_says_how_to_follow_it(cli: Cli, tiny_model: str) -> None:
    ended = cli("submit", "generate", "--model", tiny_model, "--prompt", "a bird")

    job_id = ended.out.strip()
    assert ended.code == 0
    assert cli("show", job_id, "--json").json["id"] == job_id
    assert f"calotype wait {job_id}" in ended.err


def test_submit_with_output_waits_and_leaves_the_images(cli: Cli, tiny_model: str, tmp_path: Path) -> None:
    ended = cli(
        *("submit", "generate", "--model", tiny_model, "--prompt", "a bird", "-n", "2", "--seed", "5"),
        *("--output", str(tmp_path), "--json"),
    )

    artifacts = ended.json["artifacts"]
    assert ended.code == 0
    assert [artifact["seed"] for artifact in artifacts] == [5, 6]
    for artifact in artifacts:
        assert hashlib.sha256((tmp_path / artifact["name"]).read_bytes()).hexdigest() == artifact["sha256"]


def test_submit_takes_a_file_or_standard_input(
    cli: Cli, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"kind": "generate", "family": "diffusion", "model": tiny_model, "input": {"prompt": "a bird"}}
    (tmp_path / "job.json").write_text(json.dumps(spec))
    monkeypatch.setattr("sys.stdin", StringIO(json.dumps(spec)))

    from_file = cli("submit", str(tmp_path / "job.json"), "--json").json
    from_input = cli("submit", "-", "--json").json

    assert from_file["spec"]["input"]["prompt"] == from_input["spec"]["input"]["prompt"] == "a bird"


def test_the_same_idempotency_key_gives_the_same_job(submitted: Callable[..., dict[str, Any]]) -> None:
    key = os.urandom(8).hex()

    assert submitted("--idempotency-key", key)["id"] == submitted("--idempotency-key", key)["id"]


def test_wait_ends_with_0_for_a_job_that_succeeded(cli: Cli, submitted: Callable[..., dict[str, Any]]) -> None:
    ended = cli("wait", submitted()["id"])

    assert ended.code == 0
    assert "succeeded" in ended.out


def test_wait_gives_up_after_its_timeout_and_says_that_the_job_goes_on(
    cli: Cli, submitted: Callable[..., dict[str, Any]]
) -> None:
    job = submitted("--steps", "50", "-n", "64")

    ended = cli("wait", job["id"], "--timeout", "0.2")

    assert ended.code == 1
    assert "it goes on" in ended.err
    cli("cancel", job["id"])


def test_cancel_ends_a_job_and_wait_then_ends_with_1(cli: Cli, submitted: Callable[..., dict[str, Any]]) -> None:
    job = submitted("--steps", "50", "-n", "64")

    canceled = cli("cancel", job["id"], "--json").json
    ended = cli("wait", job["id"])

    assert canceled["state"] in ("canceling", "canceled")
    assert ended.code == 1
    assert "canceled" in ended.out


def test_retry_makes_a_new_job_of_the_same_spec(cli: Cli, submitted: Callable[..., dict[str, Any]]) -> None:
    job = submitted("--seed", "9", "--metadata", "for=test")
    cli("wait", job["id"])

    again = cli("retry", job["id"], "--json").json

    assert again["retried_from"] == job["id"]
    assert again["spec"] == job["spec"]
    assert again["metadata"] == {"for": "test"}


def test_an_equal_job_is_answered_from_the_first_and_shown_so(
    cli: Cli, submitted: Callable[..., dict[str, Any]]
) -> None:
    first = submitted("--seed", "77", "--retain", "3600")
    cli("wait", first["id"])

    second = submitted("--seed", "77")
    shown = " ".join(cli("show", second["id"]).out.split())
    anew = submitted("--seed", "77", "--cache", "bypass")

    assert first["spec"]["retain_seconds"] == 3600
    assert (second["state"], second["result"]["cached_from"]) == ("succeeded", first["id"])
    assert f"cached from job {first['id']}" in shown
    assert anew["state"] != "succeeded" and anew["spec"]["cache"] == "bypass"


def test_download_and_delete(cli: Cli, submitted: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    job = submitted()
    cli("wait", job["id"])

    downloaded = cli("download", job["id"], "--output", str(tmp_path))
    deleted = cli("delete", job["id"])

    assert downloaded.out.split() == [str(tmp_path / "image-000.png")]
    assert deleted.code == 0
    assert cli("show", job["id"]).code == 1


def test_list_filters_by_state_and_kind(cli: Cli, submitted: Callable[..., dict[str, Any]]) -> None:
    job = submitted()
    cli("wait", job["id"])

    found = cli("list", "--state", "succeeded", "--kind", "generate", "--limit", "100", "--json").json
    none = cli("list", "--kind", "train", "--model", "nothing", "--json").json

    assert job["id"] in {one["id"] for one in found}
    assert none == []


def test_ctrl_c_while_waiting_leaves_the_job_and_says_how_to_follow_it(
    stack: RunningUp, cli: Cli, submitted: Callable[..., dict[str, Any]], eventually: Callable[..., object]
) -> None:
    job = submitted("--steps", "50", "-n", "64")
    waiting = subprocess.Popen(
        module_argv("calotype.cli", "wait", job["id"]),
        env=module_environment({**os.environ, "CALOTYPE_DATA_DIR": str(stack.data_dir.path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert waiting.stderr is not None
    # It has connected once it tells of the job.
    first_line = waiting.stderr.readline()

    waiting.send_signal(signal.SIGINT)
    _, rest = waiting.communicate(timeout=30)

    assert "a bird" in first_line
    assert waiting.returncode == 130
    assert f"calotype wait {job['id']}" in rest
    assert "Traceback" not in rest
    assert cli("show", job["id"], "--json").json["state"] in ("queued", "running")
    cli("cancel", job["id"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("submit", "generate", "--prompt", "a bird", "--model", "no-such-model"), "no-such-model"),
        (("submit", "generate", "--prompt", "a bird", "--model", "tiny", "--width", "33"), "width"),
        (("submit", "generate", "--prompt", "a bird", "--model", "tiny", "-n", "65"), "num_images"),
        (("submit", "no-such-file.json"), "no-such-file.json"),
        (("show", "01890000-0000-7000-8000-000000000000"), "no job"),
        (("show", "not-an-id"), "no such job"),
        (("datasets", "delete", "ds_none"), "ds_none"),
        (("models", "show", "nothing"), "nothing"),
    ],
)
def test_a_refusal_is_one_message_without_a_traceback(
    cli: Cli, tiny_model: str, arguments: tuple[str, ...], message: str
) -> None:
    ended = cli(*arguments)

    assert ended.code == 1
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_a_wrong_key_is_told_with_a_remedy(cli: Cli) -> None:
    ended = cli("list", "--api-key", "cal_wrong")

    assert ended.code == 1
    assert "--api-key" in ended.err


def test_logs_tell_what_happened_to_a_job_until_its_end(cli: Cli, submitted: Callable[..., dict[str, Any]]) -> None:
    job_id = submitted()["id"]

    followed = cli("logs", "-f", job_id)

    states = [line.split()[1] for line in followed.out.splitlines() if " (" not in line or "running" in line]
    assert followed.code == 0
    assert [state for state in states if state in {"queued", "running", "succeeded"}] == [
        "queued",
        "running",
        "succeeded",
    ]
    events = [json.loads(line) for line in cli("logs", "--json", job_id).out.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["data"]["state"] == "succeeded"


def test_the_logs_of_a_job_that_is_not_there_are_an_error(cli: Cli) -> None:
    ended = cli("logs", "01933333-3333-7333-8333-333333333333")

    assert ended.code == 1
    assert "no job" in ended.err
