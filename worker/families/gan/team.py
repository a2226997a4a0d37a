"""Several GPUs of one machine: a process for each beside this one, which follows what this one's trainer does.

    python -m worker.families.gan.team PLAN.json

Whoever trains alone notices nothing of it. The helpers read the same plan, build the same trainer and compute their
share of each batch (`replicas.py`); queue, snapshots and checkpoints are this process's affair. How many there are at
most is `CALOTYPE_TRAIN_DEVICES`. Tested with processes on a CPU; on GPUs it has not been run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from calotype.errors import JobFailed
from calotype.local.modules import module_argv, module_environment
from calotype.local.process import Command, Process, free_port
from calotype.specs.gan_train import GanTrainInput
from worker.families.gan.data import TrainingImages, reopen
from worker.families.gan.recipe import build_trainer
from worker.families.gan.replicas import Accelerated, Alone, Replicas, follow

#: Helpers wait for the next step while this process measures a snapshot or stores a checkpoint.
_PATIENCE: Final = timedelta(days=7)
#: How long the processes wait for each other at first. One that cannot start is noticed long before
#: `CALOTYPE_STALL_SECONDS` ends the worker.
_JOINING: Final = timedelta(minutes=2)
#: What a helper's environment has of this process's; nothing that a job's settings hold. Processes whose NCCL is told
#: different things do not find each other.
_INHERITED: Final = ("PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR")
_INHERITED_PREFIXES: Final = ("CUDA_", "NCCL_", "GLOO_", "OMP_", "MALLOC_")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a helper must know."""

    spec: GanTrainInput
    images: TrainingImages
    #: Where `images` are mapped from.
    file: Path
    #: Folder and reference of the version that training starts from.
    model: tuple[Path, str] | None


@dataclass(frozen=True, kw_only=True)
class Team:
    """This process and its helpers."""

    replicas: Replicas
    helpers: Sequence[Process] = ()

    def check(self) -> None:
        """Raises JobFailed where a helper has ended: the next step would wait for it in vain."""
        for helper in self.helpers:
            if helper.exit_code is not None:
                raise JobFailed(
                    "internal_error",
                    "A process of the training ended",
                    f"{helper.command.name} ended with {helper.exit_code}: {helper.log_tail(3)}",
                    retryable=True,
                )


def devices(device: torch.device, groups: int, most: int) -> int:
    """How many GPUs a batch of so many groups of images can be divided among, of those that are there and allowed."""
    available = min(most, torch.cuda.device_count()) if device.type == "cuda" else 1
    return max(count for count in range(1, max(1, available) + 1) if groups % count == 0)


@contextmanager
def gathered(count: int, plan: Plan, folder: Path, device: torch.device) -> Iterator[Team]:
    """A team of so many processes, this one among them; at the end the others are gone.

    Raises JobFailed `internal_error`, to be tried again, where the others do not come.
    """
    if count == 1:
        yield Team(replicas=Alone())
        return
    folder.mkdir()
    path = folder / "plan.json"
    path.write_text(_written(plan, device))
    common = _common(count)
    helpers = [_helper(rank, path, common) for rank in range(1, count)]
    try:
        with _environment(common | _place(0)):
            accelerator = _gather(device.type, helpers)
        yield Team(replicas=Accelerated(accelerator), helpers=helpers)
    finally:
        for helper in helpers:
            helper.stop()
        _leave_group()


def main(path: Path) -> None:
    """A helper's life."""
    plan = json.loads(path.read_text())
    accelerator = _accelerator(plan["device"])
    images, model, replicas = plan["images"], plan["model"], Accelerated(accelerator)
    trainer = build_trainer(
        GanTrainInput.model_validate(plan["spec"]),
        reopen(Path(images["file"]), images["classes"], images["labels"], images["resolution"]),
        None if model is None else (Path(model[0]), model[1]),
        device=accelerator.device,
        replicas=replicas,
    )
    follow(trainer, replicas)


def _written(plan: Plan, device: torch.device) -> str:
    images = {
        "file": str(plan.file),
        "classes": plan.images.classes.tolist(),
        "labels": list(plan.images.labels),
        "resolution": plan.images.resolution,
    }
    model = None if plan.model is None else [str(plan.model[0]), plan.model[1]]
    return json.dumps(
        {"spec": plan.spec.model_dump(mode="json"), "images": images, "model": model, "device": device.type}
    )


def _common(count: int) -> dict[str, str]:
    """What the environment of each process says of all."""
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        # Where nobody has said how many, Accelerate would change the number for this whole process.
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }


def _helper(rank: int, path: Path, common: Mapping[str, str]) -> Process:
    inherited = {
        name: value for name, value in os.environ.items() if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return Process(
        Command(
            name=f"helper {rank} of the training",
            argv=module_argv("worker.families.gan.team", str(path)),
            environment={**module_environment(inherited), **common, **_place(rank)},
            log=path.with_name(f"helper-{rank}.log"),
            grace_seconds=5.0,
        )
    )


def _place(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def _gather(kind: str, helpers: Sequence[Process]) -> Accelerator:
    try:
        return _accelerator(kind)
    except torch.distributed.DistError as exc:
        ends = "; ".join(f"{helper.command.name}: {helper.log_tail(3) or 'says nothing'}" for helper in helpers)
        detail = f"After {_JOINING.total_seconds():g} s the {len(helpers) + 1} processes were not together. {ends}"
        raise JobFailed("internal_error", "The training could not begin", detail, retryable=True) from exc


def _accelerator(kind: str) -> Accelerator:
    """By this process's place in the environment. Accelerate knows one time limit only, which would hold for the
    beginning and for all that comes; so the processes meet before it looks, and it takes them as they are."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, is_master=rank == 0, timeout=_JOINING
    )
    # NCCL meets through it once more, at the first step.
    store.set_timeout(_PATIENCE)
    backend = "gloo" if kind == "cpu" else "nccl"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    return Accelerator(cpu=kind == "cpu")


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Accelerate reads its place among the processes from the environment; afterwards it is as it was."""
    before: dict[str, str | None] = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            _restore(name, value)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _leave_group() -> None:
    """The next job's team is another one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 - there is no public way


if __name__ == "__main__":
    main(Path(sys.argv[1]))
