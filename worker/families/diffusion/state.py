"""A trainer's state as files: `trainer.safetensors` for what is a tensor and `trainer.json` for the rest. No
pickle.

With it a training goes on bitwise as if it had never stopped: weights, average, optimizer moments, random
states, the sampler's position, the micro-batch size that fitted and the losses so far.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

if TYPE_CHECKING:
    from worker.families.diffusion.trainer import Trainer

TENSORS: Final = "trainer.safetensors"
VALUES: Final = "trainer.json"

#: What AdamW keeps for each parameter.
_MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")

#: May differ between the run that saved a state and the one that goes on: neither changes what a step
#: computes.
_FREE_SETTINGS: Final = frozenset({"micro_batch_size", "checkpoint_every", "gradient_checkpointing"})


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
    """Put a saved state into a fresh trainer. Raises ValueError, naming what does not match."""
    values = json.loads((directory / VALUES).read_text())
    _refuse_another_run(trainer, values)
    tensors = load_file(directory / TENSORS)
    missing = [name for name in trainer.parameters if f"weight.{name}" not in tensors]
    if missing:
        raise ValueError(f"the state has no weights for {missing[0]} and {len(missing) - 1} others")
    _put_tensors(trainer, tensors)
    trainer.step_count = values["step"]
    trainer.sampler.position = values["sampler_position"]
    trainer.micro_batch_size = values["micro_batch_size"]
    trainer.loss_scale = values["loss_scale"]
    trainer.steps_since_overflow = values["steps_since_overflow"]
    trainer.losses = tensors["losses"].tolist()


def model_random_state(device: torch.device) -> dict[str, Tensor]:
    """The global random states that layers such as dropout draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_model_random_state(states: dict[str, Tensor], device: torch.device) -> None:
    """Undo what was drawn since `model_random_state`."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _tensors(trainer: Trainer) -> dict[str, Tensor]:
    tensors = {
        "random.batches": trainer.random.get_state(),
        "losses": torch.tensor(trainer.losses, dtype=torch.float64),
    }
    for name, value in model_random_state(trainer.device).items():
        tensors[f"random.{name}"] = value
    for name, parameter in trainer.parameters.items():
        tensors[f"weight.{name}"] = parameter.detach()
        if trainer.ema is not None:
            tensors[f"ema.{name}"] = trainer.ema[name]
        for moment in _MOMENTS:
            # Empty before the first step.
            if moment in trainer.optimizer.state[parameter]:
                tensors[f"{moment}.{name}"] = trainer.optimizer.state[parameter][moment]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _put_tensors(trainer: Trainer, tensors: dict[str, Tensor]) -> None:
    trainer.random.set_state(tensors["random.batches"])
    set_model_random_state(
        {name: tensors[f"random.{name}"] for name in ("cpu", "cuda") if f"random.{name}" in tensors},
        trainer.device,
    )
    for name, parameter in trainer.parameters.items():
        parameter.copy_(tensors[f"weight.{name}"])
        if trainer.ema is not None:
            trainer.ema[name].copy_(tensors[f"ema.{name}"])
        moments = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        trainer.optimizer.state[parameter] = {m: value.to(parameter.device) for m, value in moments.items()}


def _values(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.step_count,
        "sampler_position": trainer.sampler.position,
        "samples": len(trainer.samples),
        "micro_batch_size": trainer.micro_batch_size,
        "loss_scale": trainer.loss_scale,
        "steps_since_overflow": trainer.steps_since_overflow,
        "settings": asdict(trainer.settings),
    }


def _refuse_another_run(trainer: Trainer, values: dict[str, Any]) -> None:
    # Through JSON, so that a tuple compares equal to the list that it was stored as.
    own = json.loads(json.dumps(asdict(trainer.settings)))
    for name, value in own.items():
        if name not in _FREE_SETTINGS and values["settings"].get(name) != value:
            raise ValueError(f"the state was saved with {name}={values['settings'].get(name)!r}, not {value!r}")
    if values["samples"] != len(trainer.samples):
        raise ValueError(f"the state was saved with {values['samples']} samples, not {len(trainer.samples)}")
