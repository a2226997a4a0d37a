"""Train the GAN with the product's own trainer: logos of 64 x 64 pixels, in a colour that can be asked for.

    torchrun --nproc-per-node 2 -m starter.recipe.gan --work DIR --minutes 60 [--sheet FILE]

As many processes as cores, each with its share of every batch: networks this small lose a third of the time when two
cores share each operation instead. With `python` in place of torchrun it is one process.

Needs nothing but the training dataset. Goes on from the last checkpoint in DIR when there is one. Leaves the best of
its averaged generators, by their distance to the training logos, in DIR/version.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

import starter
from starter.recipe.evaluate_gan import evaluate
from starter.recipe.recolour import LABELS, logos, recoloured
from worker.families.gan.augment import Transforms
from worker.families.gan.data import TrainingImages
from worker.families.gan.evaluation import Evaluation
from worker.families.gan.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from worker.families.gan.networks.r3gan_config import R3GANConfig
from worker.families.gan.replicas import Alone, Command, Replicas
from worker.families.gan.schedule import Ramp
from worker.families.gan.splitting import Split
from worker.families.gan.stored import save_version
from worker.families.gan.trainer import Trainer, TrainSettings

#: Both networks: stages of 4 to 32 places a side with one residual block each.
NETWORKS: Final = R3GANConfig(
    resolution=starter.GAN_SIZE,
    num_classes=len(LABELS),
    channel_base=1024,
    channel_max=256,
    blocks_per_stage=1,
    patch=2,
    palette=4,
)
#: Ramps lead over the whole training, however long it is: see `stretched`.
SETTINGS: Final = TrainSettings(
    steps=1,
    batch_size=24,
    seed=0,
    relativistic=True,
    generator_lr=Ramp(start=6e-4, end=5e-5, kimg=0.0),
    discriminator_lr=Ramp(start=6e-4, end=5e-5, kimg=0.0),
    beta2=Ramp(start=0.99, end=0.99, kimg=0.0),
    gamma=Ramp(start=2.0, end=0.5, kimg=0.0),
    penalty_every=4,
    ema_half_life=10_000.0,
    mixed_precision="bf16",
    # Feedback says when; and of what it may do, only that which leaves a logo what it is and costs little.
    augment="ada",
    transforms=Transforms(**{one.name: float(one.name == "integer_shift") for one in fields(Transforms)}),
)
_RAMPS: Final = ("generator_lr", "discriminator_lr", "beta2", "gamma")

#: A first guess: until the pace is known, the ramps lead over so many steps.
STEPS: Final = 20_000
#: Steps between two corrections of the guess.
PACE_STEPS: Final = 50
#: Images that are compared with as many training logos at each look.
LOOKED_AT: Final = 512
LOOK_MINUTES: Final = 20.0
CHECKPOINT_MINUTES: Final = 3.0


def main() -> None:
    """Train, write checkpoints, and leave the best averaged generator in DIR/version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--sheet", type=Path, default=None, help="write a contact sheet of the result")
    options = parser.parse_args()
    own, replicas = logos(starter.train_dataset()), processes()
    trainer = new_trainer(own, stretched(SETTINGS, begun_steps(options.work / "training")), replicas=replicas)
    if replicas.rank:
        follow(trainer, options.work)
        return
    Run(trainer, own, options.work).train(options.minutes)
    if isinstance(replicas, Processes):
        replicas.end()
    evaluate(options.work / "version", sheet=options.sheet)


def new_trainer(
    own: TrainingImages, settings: TrainSettings, networks: R3GANConfig = NETWORKS, replicas: Replicas | None = None
) -> Trainer:
    """A trainer at its first step, of networks drawn from the seed."""
    torch.manual_seed(settings.seed)
    trainer = Trainer(
        R3GANGenerator(networks),
        R3GANDiscriminator(networks),
        recoloured(own),
        settings,
        replicas=replicas,
        log=print,
    )
    if isinstance(replicas, Processes):
        replicas.trainer = trainer
    # A job begins with few images at once on a CPU, since it does not know how much a network takes. These are small,
    # and what a call costs beside its arithmetic counts.
    ranks = trainer.replicas
    trainer.split = Split.of(settings.batch_size, 1, ranks=ranks.count, rank=ranks.rank)
    # On a CPU bf16 pays only with the channels of a pixel side by side; together they halve the time of a step.
    for network in (trainer.generator, trainer.discriminator, trainer.ema.model):
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    return trainer


class Processes:
    """The processes that torchrun started, on one machine. The first leads; before each step it says how long the
    training is expected to be, which decides the rates."""

    def __init__(self) -> None:
        dist.init_process_group("gloo")
        self.count, self.rank = dist.get_world_size(), dist.get_rank()
        #: Set once there is one.
        self.trainer: Trainer | None = None

    def announce(self, command: Command, argument: str | None = None) -> None:
        if command == "step" and self.trainer is not None and self.rank == 0:
            dist.broadcast(torch.tensor(self.trainer.settings.steps), 0)

    def hear(self) -> int:
        """The steps that the next one reckons with; 0: there is no next one."""
        steps = torch.tensor(0)
        dist.broadcast(steps, 0)
        return int(steps)

    def end(self) -> None:
        dist.broadcast(torch.tensor(0), 0)

    def add_up(self, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    def add_up_in_place(self, values: Sequence[Tensor]) -> None:
        whole = self.add_up(torch.cat([value.flatten() for value in values]))
        for value, total in zip(values, torch.split(whole, [value.numel() for value in values]), strict=True):
            value.copy_(total.view_as(value))


def processes() -> Replicas:
    """Those of torchrun, or this one alone."""
    if "WORLD_SIZE" not in os.environ:
        return Alone()
    torch.set_num_threads(1)
    return Processes()


def follow(trainer: Trainer, work: Path) -> None:
    """Take the steps of the leading process, and end with it."""
    if (work / "training").exists():
        trainer.load(work / "training")
    replicas = trainer.replicas
    while isinstance(replicas, Processes) and (steps := replicas.hear()):
        trainer.settings = stretched(trainer.settings, steps)
        trainer.step()


def stretched(settings: TrainSettings, steps: int) -> TrainSettings:
    """The settings for a training of so many steps: its ramps end with it."""
    kimg = steps * settings.batch_size / 1000
    return replace(settings, steps=steps, **{name: replace(getattr(settings, name), kimg=kimg) for name in _RAMPS})


def begun_steps(state: Path) -> int:
    """How many steps the training that goes on was last expected to take; of a new one, a first guess."""
    values = state / "trainer.json"
    return int(json.loads(values.read_text())["settings"]["steps"]) if values.exists() else STEPS


class Run:
    """A training by the clock, with looks at what it has come to; the best generator is kept."""

    def __init__(self, trainer: Trainer, own: TrainingImages, work: Path) -> None:
        """Goes on from the checkpoint in `work`, if there is one."""
        self._trainer, self._work = trainer, work
        self._evaluation = Evaluation(own, seed=trainer.settings.seed, device=trainer.device)
        #: Steps, and distance of the averaged generator to the training logos, at each look.
        self.curve: list[dict[str, float]] = []
        if (work / "training").exists():
            trainer.load(work / "training")
            self.curve = json.loads((work / "curve.json").read_text())

    def train(self, minutes: float) -> None:
        """Train for so long, looks included."""
        trainer, started, first = self._trainer, time.monotonic(), self._trainer.step_count
        save = every(60 * CHECKPOINT_MINUTES, self.save)
        look = every(60 * LOOK_MINUTES, self.look)
        while (passed := time.monotonic() - started) < 60 * minutes:
            if trainer.step_count % PACE_STEPS == 0:
                self._pace(trainer.step_count - first, passed, 60 * minutes)
            trainer.step()
            look()
            save()
        self.look()
        self.save()

    def save(self) -> None:
        """Write a checkpoint."""
        self._trainer.save(self._work / "training")
        (self._work / "curve.json").write_text(json.dumps(self.curve))

    def look(self) -> None:
        """Measure the averaged generator, and keep it if it is the best so far."""
        trainer = self._trainer
        distance = self._evaluation.frechet(trainer.ema.model, LOOKED_AT)
        print(f"step {trainer.step_count}: {distance:.1f} from the training logos, p {trainer.p:.2f}", flush=True)
        best = min((look["distance"] for look in self.curve), default=float("inf"))
        self.curve.append({"step": trainer.step_count, "distance": distance})
        if distance < best:
            store(trainer, self._work / "version", self.curve)

    def _pace(self, done: int, passed: float, seconds: float) -> None:
        """Machines differ in speed, and one has neighbours: how long the ramps are follows from the time left."""
        trainer = self._trainer
        left = round((seconds - passed) * done / passed) if done else STEPS
        trainer.settings = stretched(trainer.settings, trainer.step_count + max(1, left))
        if done and trainer.step_count % (4 * PACE_STEPS) == 0:
            recent = {name: losses[-4 * PACE_STEPS :] for name, losses in trainer.losses.items() if losses}
            means = " ".join(f"{name} {sum(losses) / len(losses):.3f}" for name, losses in recent.items())
            print(f"step {trainer.step_count}/{trainer.settings.steps} {passed:.0f} s {means}", flush=True)


def every(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """A function that makes a call when that much time has passed since the last one, or since now."""
    last = time.monotonic()

    def perhaps() -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            call()
            last = time.monotonic()

    return perhaps


def store(trainer: Trainer, folder: Path, curve: list[dict[str, float]]) -> None:
    """The averaged generator as a version, with what training can go on from."""
    provenance: dict[str, Any] = {
        "type": "starter",
        "made_by": starter.GAN.source,
        "steps": trainer.step_count,
        "images_seen": trainer.images_seen,
        "distance_to_training_logos": curve,
    }
    save_version(
        folder,
        trainer.ema.model,
        labels=LABELS,
        provenance=provenance,
        live_generator=trainer.generator,
        discriminator=trainer.discriminator,
    )


if __name__ == "__main__":
    main()
