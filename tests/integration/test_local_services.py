"""The three embedded services: real servers, private to this machine and to their passwords."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from calotype.local.account import can_enter, unprivileged_account
from calotype.local.errors import StackError
from calotype.local.modules import module_environment
from calotype.local.postgres import SHARED_ROOT, Postgres
from calotype.local.process import Process, free_port, wait_until_ready
from calotype.local.services import Services

if TYPE_CHECKING:
    from calotype.artifacts import ObjectStore

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, which Postgres refuses to run as")


def test_postgres_refuses_a_wrong_password(services: Services) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host="127.0.0.1",
            port=services.postgres.port,
            user="calotype",
            password="wrong",
            dbname="postgres",
        )


def test_redis_refuses_a_client_without_the_password(services: Services) -> None:
    once = Retry(NoBackoff(), 0)
    with (
        redis.Redis(host="127.0.0.1", port=services.redis.port, retry=once) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_no_password_is_visible_in_the_process_list(services: Services, command_lines: Callable[[], list[str]]) -> None:
    secrets = (services.postgres.password, services.redis.password, services.s3.secret_key)

    listing = "".join(command_lines())

    assert not [secret for secret in secrets if secret in listing]


def test_configuration_with_passwords_is_private_to_its_owner(services: Services) -> None:
    mode = (services.redis.directory / "redis.conf").stat().st_mode

    assert stat.S_IMODE(mode) == 0o600


def test_the_object_store_gives_back_what_was_put(store: ObjectStore) -> None:
    store.put_bytes("tenants/a/one.png", b"not really a png", "image/png")

    assert store.get_bytes("tenants/a/one.png") == b"not really a png"


@as_root
def test_as_root_postgres_runs_as_another_account(services: Services) -> None:
    account = unprivileged_account()
    assert account is not None

    assert services.postgres.data.stat().st_uid == account.uid != 0


@as_root
def test_a_data_folder_private_to_root_gets_its_cluster_elsewhere() -> None:
    private = Path(tempfile.mkdtemp(prefix="calotype-tests-", dir="/root"))
    cluster = Postgres(
        directory=private / "postgres", port=free_port(), password="pw", log=private / "log", durable=False
    )
    account = unprivileged_account()
    assert account is not None
    assert not can_enter(private, account)
    try:
        cluster.prepare()
        place = cluster.directory.resolve()
        process = Process(cluster.command())
        wait_until_ready(process, cluster.ready, 30)
        process.stop()

        assert place.parent == SHARED_ROOT
    finally:
        shutil.rmtree(cluster.directory.resolve(), ignore_errors=True)
        shutil.rmtree(private)


def test_data_of_another_postgres_version_is_refused_with_a_remedy(services: Services, open_folder: Path) -> None:
    old = replace(services.postgres, directory=open_folder / "postgres")
    old.data.mkdir(parents=True)
    (old.data / "PG_VERSION").write_text("13\n")

    with pytest.raises(StackError, match="belongs to Postgres 13") as caught:
        old.prepare()

    assert caught.value.remedy


def test_children_die_with_a_parent_that_is_killed(open_folder: Path, eventually: Callable[..., object]) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(open_folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=module_environment(os.environ),
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())

    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()

    eventually(lambda: not _runs(child), message="the child still runs")


_PARENT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from calotype.local.process import Command, Process

    log = Path(sys.argv[1]) / "child.log"
    argv = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = Process(Command(name="child", argv=argv, log=log))
    print(child.pid, flush=True)
    time.sleep(60)
    """
)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
