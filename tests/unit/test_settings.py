"""Settings: read once, refused when wrong, never shown when secret."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from calotype.errors import SettingsError
from calotype.settings import Settings, environment, load_settings


def test_defaults_hold_where_nothing_is_said() -> None:
    assert load_settings({"PATH": "/bin"}) == Settings()


def test_values_are_read_by_their_names() -> None:
    read = load_settings({"CALOTYPE_PORT": "9000", "CALOTYPE_LEASE_SECONDS": "3.5", "CALOTYPE_HEARTBEAT_SECONDS": "1"})
    assert (read.port, read.lease_seconds) == (9000, 3.5)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"CALOTYPE_PROT": "1"}, ["CALOTYPE_PROT", "CALOTYPE_PORT"]),
        ({"CALOTYPE_XYZZY": "1"}, ["CALOTYPE_XYZZY", "docs/settings.md"]),
        ({"CALOTYPE_PORT": "many"}, ["CALOTYPE_PORT", "'many'"]),
        ({"CALOTYPE_PORT": "70000"}, ["CALOTYPE_PORT", "65535"]),
        ({"CALOTYPE_PRESIGN_SECONDS": "0.5"}, ["CALOTYPE_PRESIGN_SECONDS", "from 1"]),
        ({"CALOTYPE_LEASE_SECONDS": "-1"}, ["CALOTYPE_LEASE_SECONDS", "positive"]),
        ({"CALOTYPE_LEASE_SECONDS": "nan"}, ["CALOTYPE_LEASE_SECONDS", "positive"]),
        ({"CALOTYPE_TRACKER": "mlflow"}, ["CALOTYPE_TRACKER", "nothing, tensorboard, wandb"]),
        ({"CALOTYPE_DEVICE": "tpu"}, ["CALOTYPE_DEVICE", "auto, cpu, cuda"]),
        ({"CALOTYPE_DATABASE_URL": "mysql://x"}, ["CALOTYPE_DATABASE_URL", "postgresql://"]),
        ({"CALOTYPE_HEARTBEAT_SECONDS": "50"}, ["CALOTYPE_HEARTBEAT_SECONDS", "half"]),
        ({"CALOTYPE_API_CONNECTIONS": "4"}, ["CALOTYPE_API_CONNECTIONS", "exceed"]),
        ({"CALOTYPE_WEBHOOK_PRIVATE_ADDRESSES": "10.0.0.0/8,here"}, ["CALOTYPE_WEBHOOK_PRIVATE_ADDRESSES", "'here'"]),
        ({"CALOTYPE_WEBHOOK_PRIVATE_ADDRESSES": "10.0.0.1/8"}, ["host bits"]),
        ({"CALOTYPE_PORT_FILE": "/x"}, ["CALOTYPE_PORT_FILE"]),
        ({"CALOTYPE_API_KEY_FILE": "/no/such/file"}, ["CALOTYPE_API_KEY_FILE", "/no/such/file"]),
    ],
)
def test_a_wrong_setting_is_named(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    for word in words:
        assert word in caught.value.detail


def test_a_secret_may_come_from_a_file_but_not_from_both(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("cal_secret\n")
    assert load_settings({"CALOTYPE_API_KEY_FILE": str(file)}).api_key == "cal_secret"
    with pytest.raises(SettingsError, match="twice"):
        load_settings({"CALOTYPE_API_KEY_FILE": str(file), "CALOTYPE_API_KEY": "other"})


def test_secrets_are_not_shown() -> None:
    settings = load_settings({"CALOTYPE_API_KEY": "cal_secret", "CALOTYPE_DATABASE_URL": "postgresql://u:hidden@h/d"})
    assert "cal_secret" not in repr(settings) and "hidden" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        load_settings({"CALOTYPE_DATABASE_URL": "mysql://u:hidden@h/d"})
    assert "hidden" not in caught.value.detail


def test_a_setting_that_is_needed_is_named_with_what_it_is_for() -> None:
    with pytest.raises(SettingsError, match="CALOTYPE_BROKER_URL"):
        Settings().require("broker_url")


def test_the_environment_of_a_child_gives_the_same_settings_again(tmp_path: Path) -> None:
    settings = dataclasses.replace(Settings(), port=9, cache_dir=tmp_path, api_key="k" * 30, lease_seconds=90.0)
    assert load_settings(environment(settings)) == settings


def test_every_setting_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Settings):
        assert f"`CALOTYPE_{field.name.upper()}`" in page
        assert field.metadata["doc"] in page


def test_networks_are_read_and_survive_the_environment_of_a_child() -> None:
    read = load_settings({"CALOTYPE_WEBHOOK_PRIVATE_ADDRESSES": " 10.1.0.0/16, fd00::/8,192.0.2.7 "})
    assert read.webhook_private_addresses == "10.1.0.0/16,fd00::/8,192.0.2.7/32"
    assert load_settings(environment(read)) == read
