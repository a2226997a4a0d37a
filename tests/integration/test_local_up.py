"""`calotype up`: what it does when things go well, when they do not, and when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from calotype import settings as settings_module
from calotype.client import Client
from calotype.jobs import SERVED_QUEUES
from calotype.local.modules import module_argv, module_environment

if TYPE_CHECKING:
    from calotype.settings import Settings
    from tests.conftest import RunningUp

StartUp = Callable[..., "RunningUp"]
Eventually = Callable[..., object]


def test_the_whole_stack_is_ready_with_a_worker_for_every_queue(stack: RunningUp) -> None:
    with Client(stack.url, stack.api_key) as client:
        queues = client.queues()

    assert set(stack.pids()) == {"postgres", "redis", "s3", "api", "reconciler", "worker-1"}
    assert {queue["name"]: queue["workers"] for queue in queues} == dict.fromkeys(SERVED_QUEUES, 1)


def test_key_and_secrets_are_private_to_their_owner(stack: RunningUp) -> None:
    private = [stack.data_dir.api_key_file, stack.data_dir.path / "secrets.json", stack.data_dir.path / "stack.json"]

    assert [oct(path.stat().st_mode & 0o777) for path in private] == ["0o600"] * 3


def test_a_killed_worker_is_started_again(stack: RunningUp, eventually: Eventually) -> None:
    with Client(stack.url, stack.api_key) as client:
        before = {worker["id"] for worker in client.workers()}

        os.kill(stack.pids()["worker-1"], signal.SIGKILL)

        eventually(lambda: any(w["state"] == "idle" and w["id"] not in before for w in client.workers()), timeout=60)


def test_a_killed_postgres_is_started_again_and_the_api_goes_on(stack: RunningUp, eventually: Eventually) -> None:
    before = stack.pids()["postgres"]

    os.kill(before, signal.SIGKILL)

    eventually(lambda: stack.pids().get("postgres") not in (None, before), timeout=30)
    with Client(stack.url, stack.api_key) as client:
        eventually(client.ready, timeout=30)
        assert client.queues()


def test_a_second_up_on_the_same_folder_is_refused(stack: RunningUp) -> None:
    second = _up(stack.data_dir.path, "--port", "0")

    assert second.returncode == 1
    assert f"Another `calotype up` (pid {stack.process.pid}) already uses" in second.stderr
    assert "--data-dir" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_taken_port_is_named_with_a_free_one(open_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = _up(open_folder / "data", "--port", str(port))

    assert ended.returncode == 1
    assert f"Port {port} on 127.0.0.1 is taken" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_data_folder_that_cannot_be_made_is_named(open_folder: Path) -> None:
    (open_folder / "file").write_text("not a folder")

    ended = _up(open_folder / "file" / "data")

    assert ended.returncode == 1
    assert str(open_folder / "file") in ended.stderr
    assert "--data-dir" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_every_process_and_data_survives_to_the_next_start(
    open_folder: Path, start_up: StartUp, eventually: Eventually
) -> None:
    first = start_up(open_folder / "data", workers=0)
    with Client(first.url, first.api_key) as client:
        client.create_tenant("kept")
    pids = first.pids()

    first.process.signal(signal.SIGINT)
    code = first.process.wait(60)

    assert code == 0
    assert not [name for name, pid in pids.items() if _runs(pid)]
    assert first.data_dir.running() is None
    second = start_up(open_folder / "data", workers=0)
    assert second.api_key == first.api_key
    with Client(second.url, second.api_key) as client:
        assert "kept" in {tenant["name"] for tenant in client.tenants()}
    second.process.stop()


def test_a_killed_up_takes_its_parts_along_and_can_be_started_again(
    open_folder: Path, start_up: StartUp, eventually: Eventually
) -> None:
    killed = start_up(open_folder / "data", workers=0)
    pids = killed.pids()

    os.kill(killed.process.pid, signal.SIGKILL)
    killed.process.wait(10)

    eventually(lambda: not any(map(_runs, pids.values())), timeout=40, message="parts outlive their parent")
    again = start_up(open_folder / "data", workers=0)
    with Client(again.url, again.api_key) as client:
        assert client.ready()
    again.process.stop()


def test_services_that_the_environment_names_are_used_instead_of_started(
    open_folder: Path, start_up: StartUp, settings: Settings
) -> None:
    given = settings_module.environment(settings)
    wanted = ("DATABASE_URL", "BROKER_URL", "S3_ENDPOINT", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_BUCKET")

    running = start_up(
        open_folder / "data", workers=0, **{f"CALOTYPE_{name}": given[f"CALOTYPE_{name}"] for name in wanted}
    )

    assert set(running.pids()) == {"api", "reconciler"}
    with Client(running.url, running.api_key) as client:
        assert {dataset["name"] for dataset in client.datasets()} >= {"starter-brand"}
    running.process.stop()


def _up(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        module_argv("calotype.cli", "up", "--data-dir", str(data_dir), *arguments),
        env=module_environment({name: v for name, v in os.environ.items() if not name.startswith("CALOTYPE_")}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
