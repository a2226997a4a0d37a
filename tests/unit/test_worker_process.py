"""Starting a worker: arguments, and what is imported by whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

from calotype.errors import SettingsError
from worker.__main__ import main
from worker.device import describe_device
from worker.families import HANDLERS


@pytest.mark.parametrize(
    ("queues", "message"),
    [
        ("diffusion.paint", "diffusion.paint is no queue"),
        ("compliance.generate", "no code of this release serves compliance.generate yet"),
        (" , ", "name at least one queue"),
    ],
)
def test_a_queue_that_cannot_be_served_is_named(queues: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--queues", queues])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_setting_is_named_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CALOTYPE_DATABASE_URL", "CALOTYPE_BROKER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert main(["--queues", "diffusion.generate"]) == 2
    assert "CALOTYPE_DATABASE_URL is not set" in capsys.readouterr().err


def test_a_gpu_that_is_demanded_and_not_there_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"CALOTYPE_DEVICE is cuda.*set it to auto or cpu"):
        describe_device("cuda")


def test_the_reconciler_loads_neither_torch_nor_the_celery_worker() -> None:
    check = "import sys, worker.reconciler; print([m for m in ('torch', 'numpy', 'celery.worker') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_worker_loads_torch_only_when_a_handler_needs_it() -> None:
    check = "import sys, worker.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_served_queue_names_a_handler() -> None:
    from calotype.jobs import SERVED_QUEUES

    assert set(HANDLERS) == set(SERVED_QUEUES)
