"""Webhooks and bulk submission from the command line and the client, against a real stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from calotype.client import Client

if TYPE_CHECKING:
    from tests.conftest import Ended, RunningUp

Cli = Callable[..., "Ended"]
#: A name that never resolves.
NOWHERE = "https://hooks.invalid/calotype"


@pytest.fixture
def client(stack: RunningUp) -> Iterator[Client]:
    with Client(stack.url, stack.api_key) as made:
        yield made


@pytest.fixture
def spec(tiny_model: str) -> Callable[..., dict[str, Any]]:
    def make(**fields: Any) -> dict[str, Any]:
        asked = {"prompt": "a bird", "steps": 1, **fields.pop("input", {})}
        return {"kind": "generate", "family": "diffusion", "model": tiny_model, "input": asked, **fields}

    return make


def test_what_became_of_a_webhook_is_listed_shown_and_sent_again(
    cli: Cli, client: Client, spec: Callable[..., Any], eventually: Callable[..., Any]
) -> None:
    job = client.wait(client.submit(spec(webhook={"url": NOWHERE}))["id"], timeout=90)
    listed = ("webhooks", "list", "--job", job["id"], "--json")
    (delivery,) = eventually(lambda: [one for one in cli(*listed).json if one["tries"]], timeout=60)

    shown = cli("webhooks", "show", delivery["id"]).json
    replayed = cli("webhooks", "replay", delivery["id"])

    assert (delivery["type"], delivery["state"], delivery["url"]) == ("job.succeeded", "pending", NOWHERE)
    assert delivery["tries"][0]["status_code"] is None
    assert shown["body"]["data"]["id"] == job["id"]
    assert replayed.code == 0 and "pending" in replayed.err
    assert delivery["id"] in cli("webhooks", "list", "--state", "pending").out


def test_the_secret_is_printed_alone_so_that_a_script_can_use_it(cli: Cli) -> None:
    first = cli("webhooks", "secret").out
    rotated = cli("webhooks", "secret", "--rotate")

    assert first.startswith("whsec_") and first.count("\n") == 1
    assert rotated.out.startswith("whsec_") and rotated.out != first
    assert "the one before signs, too" in rotated.err
    assert cli("webhooks", "secret", "--json").json["secret"] == rotated.out.strip()


def test_a_file_of_specs_is_submitted_line_by_line(cli: Cli, spec: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    lines = [spec(input={"seed": 1}), spec(priority=11), spec(input={"prompt": "a\u2028b"})]
    file.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines))

    ended = cli("submit", "bulk", str(file))

    ids = ended.out.split()
    assert (ended.code, len(ids)) == (1, 2)
    assert "line 3: priority" in ended.err and "2 submitted, 1 refused" in ended.err
    assert cli("show", ids[1], "--json").json["spec"]["input"]["prompt"] == "a\u2028b"


def test_a_file_that_is_not_json_lines_submits_nothing(cli: Cli, spec: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "jobs.ndjson"
    (before,) = cli("list", "--json", "-n", "1").json
    for second in ("{", "[]"):
        file.write_text(f"{json.dumps(spec())}\n{second}\n")
        ended = cli("submit", "bulk", str(file))
        assert ended.code == 1 and "line 2" in ended.err and "Nothing was submitted" in ended.err
    assert cli("list", "--json", "-n", "1").json[0]["id"] == before["id"]
    assert cli("submit", "bulk", "nowhere.ndjson").code == 1


def test_the_client_splits_many_specs_into_calls_and_repeats_none(
    client: Client,
    spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    requests_of: Callable[[Client], list[str]],
) -> None:
    monkeypatch.setattr("calotype.client.jobs.LARGEST_BULK_LINES", 2)
    asked = requests_of(client)
    given = [spec(input={"seed": seed}, idempotency_key=f"bulk-{seed}") for seed in range(5)]

    first = list(client.submit_bulk(given))
    assert asked == [f"POST {client.url}/v1/jobs:bulk"] * 3
    again = list(client.submit_bulk(given))

    assert [one["index"] for one in first] == list(range(5))
    assert [one["job"]["spec"]["input"]["seed"] for one in first] == list(range(5))
    assert [one["job"]["id"] for one in first] == [one["job"]["id"] for one in again]
    assert list(client.submit_bulk([])) == []


def test_the_client_splits_specs_that_are_too_long_for_one_call(
    client: Client,
    spec: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    requests_of: Callable[[Client], list[str]],
) -> None:
    given = [spec(input={"seed": seed, "prompt": "bird " * 40}) for seed in range(3)]
    monkeypatch.setattr("calotype.client.jobs.LARGEST_BULK_BYTES", 2 * len(json.dumps(given[0])))
    asked = requests_of(client)

    answers = list(client.submit_bulk(given))

    assert len(asked) == 3
    assert [one["index"] for one in answers] == [0, 1, 2]
