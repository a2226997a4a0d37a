"""A trainer's state as files: `trainer.safetensors` for what is a tensor and `trainer.json` for the rest. No pickle.

With it a training goes on bitwise as if it had never stopped: weights and buffers of both networks and of the running
mean, both optimizers' moments, the controller of augmentation, random states, the sampler's position, the split that
fitted into memory and the losses so far. (On a CPU. GPU kernels that add up in any order differ in the last bits from
one run to the next, whether it was interrupted or not.) It is the same in every process of a training on several
devices, and another number of them can go on with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families.gan.trainer import Trainer

TENSORS: Final = "trainer.safetensors"
VALUES: Final = "trainer.json"

#: What Adam keeps for each parameter.
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")


def save(trainer: Trainer, directory: Path) -> None:
    """Write the state to `directory`. A crash half-way leaves the previous state or none, never a mixture."""
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(_tensors(trainer), fresh / TENSORS)
    (fresh / VALUES).write_text(json.dumps(_values(trainer), indent=1))
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def load(trainer: Trainer, directory: Path) -> None:
    """Put a saved state into a fresh trainer. Raises ValueError, naming what does not match; then nothing is put."""
    values = json.loads((directory / VALUES).read_text())
    _refuse_another_run(trainer, values)
    tensors = load_file(directory / TENSORS)
    _refuse_other_networks(trainer, tensors)
    _put_tensors(trainer, tensors)
    trainer.step_count = values["step"]
    trainer.sampler.position = values["sampler_position"]
    trainer.split = trainer.split.of_at_most(values["micro_batch_size"])
    trainer.controller.load_state_dict(values["controller"])
    trainer.least_p = values["least_p"]


def _networks(trainer: Trainer) -> dict[str, nn.Module]:
    return {"generator": trainer.generator, "discriminator": trainer.discriminator, "ema": trainer.ema.model}


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {"random.steps": trainer.random.get_state()}
    for name, losses in trainer.losses.items():
        tensors[f"losses.{name}"] = torch.tensor(losses, dtype=torch.float64)
    for prefix, network in _networks(trainer).items():
        for name, tensor in network.state_dict().items():
            # Filters may be shared between layers, which safetensors refuses.
            tensors[f"{prefix}.{name}"] = tensor.detach().clone()
    for prefix, optimizer in trainer.optimizers.items():
        for name, parameter in _networks(trainer)[prefix].named_parameters():
            for moment, tensor in optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{prefix}.{moment}.{name}"] = tensor
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _put_tensors(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    trainer.random.set_state(tensors["random.steps"])
    trainer.losses = {name: tensors[f"losses.{name}"].tolist() for name in trainer.losses}
    for prefix, network in _networks(trainer).items():
        network.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in network.state_dict()})
    for prefix, optimizer in trainer.optimizers.items():
        for name, parameter in _networks(trainer)[prefix].named_parameters():
            keys = {moment: f"adam.{prefix}.{moment}.{name}" for moment in _MOMENTS}
            # A parameter that never had a gradient has none of them.
            stored = {moment: _laid_out(tensors[key], parameter) for moment, key in keys.items() if key in tensors}
            if stored:
                optimizer.state[parameter] = stored


def _laid_out(moment: Tensor, parameter: Tensor) -> Tensor:
    """On the parameter's device and, in memory, in its order: the fused Adam walks through both alike, also where the
    channels are last."""
    if moment.shape != parameter.shape:
        return moment.to(parameter.device)
    return torch.empty_like(parameter).copy_(moment)


def _values(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.step_count,
        "sampler_position": trainer.sampler.position,
        "images": len(trainer.images),
        "labels": list(trainer.images.labels),
        "micro_batch_size": trainer.split.micro_batch_size,
        "controller": trainer.controller.state_dict(),
        "least_p": trainer.least_p,
        "settings": asdict(trainer.settings),
    }


def _refuse_another_run(trainer: Trainer, values: Mapping[str, Any]) -> None:
    own = json.loads(json.dumps(_values(trainer)))
    for name, value in own["settings"].items():
        stored = values["settings"].get(name)
        if stored != value:
            raise ValueError(f"the state was saved with {name}={stored!r}, not {value!r}")
    for name in ("images", "labels"):
        if values[name] != own[name]:
            raise ValueError(f"the state was saved with {name} {values[name]!r}, not {own[name]!r}")


def _refuse_other_networks(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    for prefix, network in _networks(trainer).items():
        for name, tensor in network.state_dict().items():
            stored = tensors.get(f"{prefix}.{name}")
            if stored is None or stored.shape != tensor.shape:
                found = "nothing" if stored is None else f"the shape {list(stored.shape)}"
                raise ValueError(f"the state has {found} where {prefix}.{name} has the shape {list(tensor.shape)}")
