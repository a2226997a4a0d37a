"""The command line on datasets, models, queues, tenants and keys, against a real stack."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from calotype import tables, tenants
from calotype.client.fleet import FleetCalls
from calotype.database import connect_engine, transaction
from calotype.jobs import SERVED_QUEUES

if TYPE_CHECKING:
    from tests.conftest import Ended, RunningUp

Cli = Callable[..., "Ended"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "one.png")
    made = tmp_path / "photos.zip"
    with zipfile.ZipFile(made, "w") as target:
        target.write(tmp_path / "one.png", "one.png")
    return made


def test_a_dataset_is_uploaded_listed_and_deleted(cli: Cli, archive: Path) -> None:
    uploaded = cli("datasets", "upload", str(archive), "--json").json

    listed = cli("datasets", "list", "--json").json
    deleted = cli("datasets", "delete", uploaded["id"])

    assert uploaded["name"] == "photos"
    assert uploaded["images"] == 1
    assert uploaded["id"] in {dataset["id"] for dataset in listed}
    assert deleted.code == 0
    assert uploaded["id"] not in {dataset["id"] for dataset in cli("datasets", "list", "--json").json}


def test_an_archive_with_a_climbing_path_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as target:
        target.writestr("../outside.png", b"x")

    ended = cli("datasets", "upload", str(bad))

    assert ended.code == 1
    assert "../outside.png" in ended.err


def test_a_missing_archive_is_a_usage_error(cli: Cli) -> None:
    assert cli("datasets", "upload", "nowhere.zip").code == 2


def test_the_starter_datasets_are_shared(cli: Cli) -> None:
    names = {dataset["name"] for dataset in cli("datasets", "list", "--json").json if dataset["shared"]}

    assert {"starter-logos", "starter-logos-heldout", "starter-brand"} <= names


def test_models_are_listed_and_shown(cli: Cli, tiny_model: str) -> None:
    listed = cli("models", "list")
    shown = cli("models", "show", tiny_model)

    assert tiny_model in listed.out
    assert shown.json["name"] == tiny_model


def test_queues_and_workers_are_shown_as_tables_and_as_json(cli: Cli) -> None:
    assert "diffusion.generate" in cli("queues", "list").out
    assert "worker-1" in cli("workers", "list").out
    assert {queue["name"] for queue in cli("queues", "list", "--json").json} == set(SERVED_QUEUES)


def test_a_queue_whose_jobs_were_not_all_counted_is_shown_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FleetCalls.queues

    def queues(client: FleetCalls) -> list[dict[str, Any]]:
        first, *others = real(client)
        return [{**first, "depth": 120_000, "runnable": 100_000, "at_least": True}, *others]

    monkeypatch.setattr(FleetCalls, "queues", queues)
    _, first, *others = cli("queues", "list").out.splitlines()
    assert first.split()[1:3] == ["120000+", "100000+"]
    assert not [line for line in others if "+" in line]


def test_a_queue_is_paused_with_a_reason_and_resumed(cli: Cli) -> None:
    # One that no other test of the stack waits for.
    queue = "diffusion.benchmark"
    try:
        assert cli("queues", "pause", queue, "--reason", "new drivers").code == 0
        (line,) = (line for line in cli("queues", "list").out.splitlines() if queue in line)
        assert "new drivers" in line
    finally:
        assert cli("queues", "resume", queue).code == 0
    assert "new drivers" not in cli("queues", "list").out
    wrong = cli("queues", "pause", "diffusion.paint")
    assert wrong.code == 1 and queue in wrong.err


def test_a_worker_is_drained_and_undrained_by_its_name(cli: Cli) -> None:
    try:
        assert cli("workers", "drain", "worker-1").code == 0
        (worker,) = cli("workers", "list", "--json").json
        assert worker["draining"] is True
        assert "draining" in cli("workers", "list").out
    finally:
        assert cli("workers", "undrain", "worker-1").code == 0
    (worker,) = cli("workers", "list", "--json").json
    assert worker["draining"] is False
    assert cli("workers", "drain", "nobody").code == 1


def test_usage_is_shown_per_day(cli: Cli, stack: RunningUp) -> None:
    engine = connect_engine(stack.settings(), application_name="test")
    with transaction(engine) as conn:
        owner = tenants.create_tenant(conn, "metered")
        values = {"tenant_id": owner.id, "queue": "diffusion.generate", "jobs": 7, "images": 9, "gpu_seconds": 12.25}
        conn.execute(tables.usage.insert(), [{**values, "day": day} for day in (date(2026, 1, 2), date(2026, 1, 3))])
    engine.dispose()
    asked = ("usage", "--tenant", "metered", "--from", "2026-01-01", "--to", "2026-01-31")
    assert [day["day"] for day in cli(*asked, "--json").json] == ["2026-01-03", "2026-01-02"]
    total = cli(*asked).out.splitlines()[-1].split()
    assert total == ["total", "14", "0", "18", "24.5"]
    assert "nothing was used" in cli(*asked[:-1], "2026-01-01").out
    assert cli("usage").code == 0


def test_a_tenants_share_and_limits_are_changed(cli: Cli) -> None:
    made = cli("tenants", "create", "weighty", "--weight", "2", "--max-running", "4", "--json").json
    assert (made["weight"], made["max_running"], made["max_queued"]) == (2.0, 4, None)
    changed = cli("tenants", "change", "weighty", "--max-running", "none", "--max-queued", "50", "--json").json
    assert (changed["weight"], changed["max_running"], changed["max_queued"]) == (2.0, None, 50)
    (line,) = (line for line in cli("tenants", "list").out.splitlines() if line.startswith("weighty"))
    assert line.split()[1:3] == ["2", "50"]
    for wrong in (("--max-queued", "many"), ("--weight", "0"), ()):
        assert cli("tenants", "change", "weighty", *wrong).code == 1


def test_keys_create_makes_the_tenant_and_prints_a_key_that_works_for_it_alone(cli: Cli) -> None:
    made = cli("keys", "create", "--tenant", "acme", "--name", "app")
    key = made.out.strip()

    assert made.code == 0
    assert key.startswith("cal_")
    assert cli("list", "--api-key", key, "--json").json == []
    refused = cli("tenants", "list", "--api-key", key)
    assert refused.code == 1
    assert "scope" in refused.err


def test_a_key_is_rotated_and_revoked(cli: Cli) -> None:
    made = cli("keys", "create", "--tenant", "rotating", "--json").json

    new = cli("keys", "rotate", made["id"]).out.strip()

    assert cli("list", "--api-key", made["key"]).code == 1
    assert cli("list", "--api-key", new).code == 0
    live = next(key for key in cli("keys", "list", "--tenant", "rotating", "--json").json if not key["revoked_at"])
    assert cli("keys", "revoke", live["id"]).code == 0
    assert cli("list", "--api-key", new).code == 1


def test_a_tenant_is_made_once(cli: Cli) -> None:
    assert cli("tenants", "create", "once").code == 0

    again = cli("tenants", "create", "once")

    assert again.code == 1
    assert "once" in again.err
    assert "once" in cli("tenants", "list").out
