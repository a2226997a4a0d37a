"""Commands that an operator of a cluster runs, without an embedded stack."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from calotype import tenants
from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.local.modules import module_argv, module_environment
from calotype.local.services import Services
from calotype.settings import Settings, environment
from calotype.tenants import Scope

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run() -> Run:
    def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CALOTYPE_")}
        return subprocess.run(
            module_argv("calotype.cli", *arguments),
            env=module_environment({**inherited, **environment}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return command


def test_migrate_makes_the_schema_and_then_has_nothing_to_do(services: Services, run: Run) -> None:
    services.postgres.ensure_database("for_migrate")
    url = services.postgres.url("for_migrate")

    first = run("migrate", CALOTYPE_DATABASE_URL=url)
    second = run("migrate", CALOTYPE_DATABASE_URL=url)

    assert first.returncode == second.returncode == 0
    assert "applied 0001" in first.stderr
    assert "nothing to do" in second.stderr


def test_migrate_without_a_database_names_the_setting(run: Run) -> None:
    ended = run("migrate")

    assert ended.returncode == 1
    assert "CALOTYPE_DATABASE_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_migrate_on_an_unreachable_database_hides_the_password(run: Run) -> None:
    ended = run("migrate", CALOTYPE_DATABASE_URL="postgresql://calotype:hidden-word@127.0.0.1:9/calotype")

    assert ended.returncode == 1
    assert "hidden-word" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["api", "worker", "reconciler"])
def test_a_process_without_its_services_names_what_to_set(run: Run, command: str) -> None:
    arguments = ("--queues", "diffusion.generate", "--name", "w") if command == "worker" else ()

    ended = run(command, *arguments)

    assert ended.returncode != 0
    assert "CALOTYPE_DATABASE_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_arguments_are_passed_on_to_the_worker(run: Run) -> None:
    ended = run("worker", "--help")

    assert ended.returncode == 0
    assert "--queues" in ended.stdout


def test_migrate_makes_the_bucket_and_stores_the_first_key_where_they_are_given(
    services: Services, run: Run, tmp_path: Path
) -> None:
    services.postgres.ensure_database("for_bootstrap")
    url, key = services.postgres.url("for_bootstrap"), tenants.new_plaintext()
    (tmp_path / "key").write_text(key)
    settings = Settings(
        database_url=url,
        s3_endpoint=services.s3.endpoint,
        s3_access_key=services.s3.access_key,
        s3_secret_key=services.s3.secret_key,
        s3_bucket=f"bootstrap-{secrets.token_hex(4)}",
    )

    ended = run("migrate", CALOTYPE_BOOTSTRAP_KEY_FILE=str(tmp_path / "key"), **environment(settings))

    assert ended.returncode == 0 and key not in ended.stdout + ended.stderr
    ObjectStore(settings).ping()
    engine = connect_engine(settings, application_name="test")
    with transaction(engine) as conn:
        assert Scope.ADMIN in tenants.authenticate(conn, key).scopes
    engine.dispose()
