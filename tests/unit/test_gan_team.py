"""Several GPUs for one training: how many, and helpers that do not come."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from calotype.errors import JobFailed
from calotype.local.process import Command, Process
from calotype.settings import Settings, load_settings
from worker.families.gan import team

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
def test_a_training_takes_one_gpu_where_nobody_allowed_more() -> None:
    assert team.devices(CUDA, 8, Settings().train_devices) == 1


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("groups", "most", "count"), [(8, 2, 2), (8, 3, 2), (6, 3, 3), (6, 4, 3), (8, 99, 4), (1, 4, 1), (5, 4, 1)]
)
def test_it_takes_as_many_as_are_allowed_there_and_divide_the_batch(groups: int, most: int, count: int) -> None:
    allowed = load_settings({"CALOTYPE_TRAIN_DEVICES": str(most)}).train_devices
    assert team.devices(CUDA, groups, allowed) == count


@pytest.mark.usefixtures("four_gpus")
def test_a_cpu_is_one_device() -> None:
    assert team.devices(CPU, 8, 4) == 1


def test_a_helper_that_does_not_come_is_a_failure_that_quotes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Process] = []

    def broken(rank: int, path: Path, common: Any) -> Process:
        command = Command(
            name=f"helper {rank} of the training",
            argv=(sys.executable, "-c", "raise SystemExit('no such device')"),
            environment={},
            log=tmp_path / "helper.log",
        )
        started.append(Process(command))
        started[-1].wait(60.0)
        return started[-1]

    monkeypatch.setattr(team, "_helper", broken)
    monkeypatch.setattr(team, "_written", lambda plan, device: "{}")
    monkeypatch.setattr(team, "_JOINING", timedelta(seconds=2))
    with pytest.raises(JobFailed, match="not together") as failed, team.gathered(2, None, tmp_path / "team", CPU):  # type: ignore[arg-type]
        pytest.fail("a team of one was taken for two")
    assert (failed.value.code, failed.value.retryable) == ("internal_error", True)
    assert "helper 1 of the training: no such device" in failed.value.detail
    assert not torch.distributed.is_initialized()
    assert started[0].exit_code == 1
