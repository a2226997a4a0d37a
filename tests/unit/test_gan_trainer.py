"""The GAN trainer: steps that do not depend on how they are computed, and a state that loses nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_gan
import torch
from safetensors.torch import load_file
from torch import Tensor

from calotype.errors import JobFailed
from worker.families.gan.augment import EVERYTHING
from worker.families.gan.losses import lazy_adam
from worker.families.gan.networks.minibatch_std import append_minibatch_std
from worker.families.gan.objective import Objective
from worker.families.gan.schedule import Ramp
from worker.families.gan.splitting import Split
from worker.families.gan.trainer import Diverged, Trainer
from worker.signals import CancelRequested

TESTS = Path(__file__).parents[1]


def steps(trainer: Trainer, count: int) -> Trainer:
    for _ in range(count):
        trainer.step()
    return trainer


def weights(trainer: Trainer) -> dict[str, Tensor]:
    networks = {"g": trainer.generator, "d": trainer.discriminator, "ema": trainer.ema.model}
    return {
        f"{prefix}.{name}": tensor.clone()
        for prefix, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    return max(float((before[name] - after[name]).abs().max()) for name in before)


# Splits


def test_a_batch_is_halved_until_a_group_is_left() -> None:
    split: Split | None = Split.of(32, 4)
    sizes = []
    while split is not None:
        sizes.append(split.micro_batch_size)
        split = split.finer()
    assert sizes == [32, 16, 8, 4]


def test_a_batch_of_an_odd_number_of_groups_is_split_as_far_as_it_goes() -> None:
    first = Split.of(12, 4)
    second = first.finer()
    assert second is not None
    assert (first.micro_batch_size, second.micro_batch_size, second.finer()) == (12, 4, None)


@pytest.mark.parametrize(("batch", "ranks", "parts"), [(16, 1, 2), (16, 2, 2), (12, 3, 1), (32, 2, 1), (6, 1, 2)])
def test_every_image_is_in_one_part_of_one_device_and_groups_stay_whole(batch: int, ranks: int, parts: int) -> None:
    x = torch.randn(batch, 2, 4, 4)
    whole = append_minibatch_std(x, 4)
    seen: list[int] = []
    for rank in range(ranks):
        split = replace(Split.of(batch, 4, ranks=ranks, rank=rank), parts=parts)
        for part in split.slices():
            seen += torch.arange(batch)[part].tolist()
            torch.testing.assert_close(append_minibatch_std(x[part], 4), whole[part])
    assert sorted(seen) == list(range(batch))


def test_devices_that_would_cut_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 12"):
        Split.of(16, 4, ranks=3)


# A step does not depend on how it is computed


@pytest.mark.parametrize("architecture", tiny_gan.ARCHITECTURES)
def test_a_batch_in_parts_is_the_same_step_as_a_whole_one(architecture: str) -> None:
    whole, parts = (tiny_gan.trainer(architecture, classes=3) for _ in range(2))
    finer = parts.split.finer()
    assert finer is not None
    parts.split = finer
    start = weights(whole)
    steps(whole, 3), steps(parts, 3)
    after, other = weights(whole), weights(parts)
    assert moved(start, after) > 1e-3
    for name, tensor in after.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    for name, values in whole.losses.items():
        assert parts.losses[name] == pytest.approx(values, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("phase", ["discriminator", "penalty", "generator"])
def test_where_memory_runs_out_the_same_step_is_made_in_smaller_parts(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    undisturbed, small = tiny_gan.trainer("stylegan3-t"), tiny_gan.trainer("stylegan3-t", log=said.append)
    steps(undisturbed, 3)
    losses = getattr(Objective, phase)

    def fits_four(objective: Objective, draw: Any, moment: Any) -> Any:
        found = losses(objective, draw, moment)
        if len(draw.numbers) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(Objective, phase, fits_four)
    steps(small, 3)
    assert small.split.micro_batch_size == 4
    assert said == ["out of memory with 8 images at once: step 1 is replayed with 4; the batch size stays 8"]
    for name, tensor in weights(undisturbed).items():
        torch.testing.assert_close(weights(small)[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert torch.equal(small.random.get_state(), undisturbed.random.get_state())
    assert small.controller.state_dict() == undisturbed.controller.state_dict()


def test_where_not_even_a_group_fits_the_training_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def never_fits(objective: Objective, draw: Any, moment: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Objective, "discriminator", never_fits)
    with pytest.raises(JobFailed, match="Not even 4 images") as caught:
        tiny_gan.trainer("stylegan3-t").step()
    assert caught.value.code == "out_of_memory"


def test_any_other_error_goes_past(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(objective: Objective, draw: Any, moment: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Objective, "generator", broken)
    trainer = tiny_gan.trainer("stylegan3-t")
    with pytest.raises(RuntimeError, match="shapes"):
        trainer.step()
    assert all(parameter.requires_grad for parameter in trainer.discriminator.parameters())


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_a_step_shows_life_before_each_part_of_each_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    trainer = tiny_gan.trainer(architecture, batch_size=16, pulse=lambda: happened.append("pulse"))
    for phase in ("discriminator", "penalty", "generator"):
        losses = getattr(Objective, phase)

        def noted(objective: Objective, draw: Any, moment: Any, phase: str = phase, losses: Any = losses) -> Any:
            happened.append(phase)
            return losses(objective, draw, moment)

        monkeypatch.setattr(Objective, phase, noted)
    trainer.step()
    passes = ["discriminator", "penalty", "generator"] if architecture != "r3gan" else ["discriminator", "generator"]
    assert happened == [entry for phase in passes for _ in range(2) for entry in ("pulse", phase)]


def test_a_step_that_is_not_wanted_any_more_ends_within() -> None:
    asked = iter([None, None, CancelRequested()])

    def pulse() -> None:
        if (reason := next(asked)) is not None:
            raise reason

    trainer = tiny_gan.trainer("stylegan3-t", batch_size=16, pulse=pulse)
    with pytest.raises(CancelRequested):
        trainer.step()
    assert trainer.step_count == 0


def test_a_cpu_computes_few_images_at_once() -> None:
    assert tiny_gan.trainer("stylegan3-t", batch_size=16).split.micro_batch_size == 8
    assert tiny_gan.trainer("r3gan", batch_size=4).split.micro_batch_size == 4


# Several processes


_REPLICA = """
import pathlib, sys, tiny_gan
from accelerate import Accelerator
from worker.families.gan.replicas import Accelerated

accelerator = Accelerator(cpu=True)
for architecture in ("stylegan3-t", "r3gan"):
    replicas = Accelerated(accelerator)
    trainer = tiny_gan.trainer(architecture, replicas=replicas)
    if replicas.rank:
        # What `follow` does, but as often as is led here.
        for _ in range(6):
            command, argument = replicas.hear()
            getattr(trainer, command)()
    else:
        for _ in range(2):
            trainer.step()
        trainer.raise_augmentation()
        for _ in range(3):
            trainer.step()
    trainer.save(pathlib.Path(sys.argv[1], architecture, str(replicas.rank)))
accelerator.end_training()
"""


@pytest.mark.timeout(300)
def test_two_processes_make_the_steps_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", _REPLICA, str(tmp_path)],
                env={
                    "PATH": os.defpath,
                    "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
                    "OMP_NUM_THREADS": "1",
                    "ACCELERATE_USE_CPU": "true",
                    "GLOO_SOCKET_IFNAME": "lo",
                    **{name: str(value) for name, value in place.items()},
                },
                stderr=subprocess.PIPE,
            )
        )
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for architecture in ("stylegan3-t", "r3gan"):
        alone, folder = steps(tiny_gan.trainer(architecture), 2), tmp_path / architecture
        alone.raise_augmentation()
        steps(alone, 3).save(folder / "alone")
        expected, first, second = (load_file(folder / name / "trainer.safetensors") for name in ("alone", "0", "1"))
        for name, tensor in expected.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name].double(), tensor.double(), rtol=1e-4, atol=2e-5, msg=name)
        values = [json.loads((folder / name / "trainer.json").read_text()) for name in ("alone", "0", "1")]
        assert [one["micro_batch_size"] for one in values] == [8, 4, 4]
        assert [one["least_p"] for one in values] == [pytest.approx(0.6)] * 3
        assert values[0]["controller"] == values[1]["controller"] == values[2]["controller"]


# Resuming


def interrupted(
    architecture: str, folder: Path, disturb: Callable[[Trainer], object] = lambda trainer: None
) -> Trainer:
    """Six steps, of which another trainer with other first weights made the last three."""
    first = steps(tiny_gan.trainer(architecture, classes=2), 3)
    first.raise_augmentation()
    first.save(folder)
    second = tiny_gan.trainer(architecture, classes=2, seed=5)
    second.load(folder)
    disturb(second)
    return steps(second, 3)


def saved(trainer: Trainer, folder: Path) -> tuple[bytes, bytes]:
    trainer.save(folder)
    return (folder / "trainer.safetensors").read_bytes(), (folder / "trainer.json").read_bytes()


def whole(architecture: str) -> Trainer:
    made = steps(tiny_gan.trainer(architecture, classes=2), 3)
    made.raise_augmentation()
    return steps(made, 3)


@pytest.mark.parametrize("architecture", tiny_gan.ARCHITECTURES)
def test_a_resumed_training_is_bitwise_the_undisturbed_one(architecture: str, tmp_path: Path) -> None:
    resumed = interrupted(architecture, tmp_path / "between")
    assert saved(resumed, tmp_path / "resumed") == saved(whole(architecture), tmp_path / "whole")


def _forget_moment(trainer: Trainer, network: str, moment: str) -> None:
    for values in trainer.optimizers[network].state.values():
        values[moment].zero_()


FORGETTING: dict[str, Callable[[Trainer], object]] = {
    "first moments": lambda t: _forget_moment(t, "generator", "exp_avg_sq"),
    "step of Adam": lambda t: _forget_moment(t, "discriminator", "step"),
    "running mean": lambda t: t.ema.update(t.generator, 0.0),
    "w_avg": lambda t: t.generator.mapping.w_avg.zero_(),  # type: ignore[union-attr]
    "random numbers": lambda t: t.random.manual_seed(t.settings.seed),
    "position in the data": lambda t: setattr(t.sampler, "position", 0),
    "controller": lambda t: t.controller.load_state_dict(
        {"p": t.controller.p, "batches": 0, "seen": None, "heuristic": None}
    ),
    "least p": lambda t: setattr(t, "least_p", 0.0),
    "step": lambda t: setattr(t, "step_count", 0),
    "losses": lambda t: t.losses["generator"].clear(),
}


@pytest.mark.parametrize("what", FORGETTING)
def test_a_state_that_forgot_anything_would_be_noticed(what: str, tmp_path: Path) -> None:
    resumed = interrupted("stylegan3-t", tmp_path / "between", FORGETTING[what])
    assert saved(resumed, tmp_path / "resumed") != saved(whole("stylegan3-t"), tmp_path / "whole")


def test_the_split_that_fitted_is_kept(tmp_path: Path) -> None:
    first = tiny_gan.trainer("stylegan3-t")
    finer = first.split.finer()
    assert finer is not None
    first.split = finer
    first.save(tmp_path / "state")
    second = tiny_gan.trainer("stylegan3-t")
    second.load(tmp_path / "state")
    assert second.split == finer


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    tiny_gan.trainer("stylegan3-t").save(tmp_path / "state")
    for other, words in (
        (tiny_gan.trainer("stylegan3-t", penalty_every=3), "penalty_every=2, not 3"),
        (tiny_gan.trainer("stylegan3-t", count=25), "images 24, not 25"),
        (tiny_gan.trainer("stylegan3-t", classes=2), "labels"),
        (tiny_gan.trainer("stylegan3-r"), r"has nothing where|has the shape"),
    ):
        before = weights(other)
        with pytest.raises(ValueError, match=words):
            other.load(tmp_path / "state")
        assert moved(before, weights(other)) == 0


# What a step does


def test_adam_takes_the_schedules_and_the_discriminator_the_lazy_ones() -> None:
    trainer = tiny_gan.trainer("stylegan3-t", generator_lr=Ramp(start=0.01, end=0.0, kimg=0.016))
    rates = []
    for _ in range(3):
        trainer.step()
        rates.append(trainer.optimizers["generator"].param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.005, 0.0])
    group = trainer.optimizers["discriminator"].param_groups[0]
    assert (group["lr"], group["betas"]) == lazy_adam(0.002, (0.0, 0.99), 2)


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_the_penalty_is_lazy_and_stands_for_the_steps_without_it(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    name = "discriminator" if architecture == "r3gan" else "penalty"
    losses = getattr(Objective, name)

    def spied(objective: Objective, draw: Any, moment: Any) -> Any:
        seen.append(moment.gamma)
        return losses(objective, draw, moment)

    monkeypatch.setattr(Objective, name, spied)
    trainer = tiny_gan.trainer(architecture, penalty_every=3, gamma=tiny_gan.constant(0.5))
    found = [trainer.step().penalty for _ in range(4)]
    if architecture == "r3gan":
        assert (seen, found) == ([1.5, 0.0, 0.0, 1.5], [None] * 4)
    else:
        assert seen == [1.5, 1.5]
        assert [one is None for one in found] == [False, True, True, False]


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_a_penalty_keeps_the_discriminator_flat(architecture: str) -> None:
    def steepness(gamma: float) -> float:
        trainer = steps(
            tiny_gan.trainer(architecture, gamma=tiny_gan.constant(gamma), augment="none", penalty_every=1), 12
        )
        real = trainer.images.images(torch.arange(16)).requires_grad_()
        (gradient,) = torch.autograd.grad(trainer.discriminator(real).sum(), real)
        return float(gradient.square().sum())

    assert steepness(30.0) < 0.5 * steepness(0.0)


def test_each_step_moves_the_running_means_of_the_generator_and_the_average() -> None:
    trainer = tiny_gan.trainer("stylegan3-t")
    before = weights(trainer)
    trainer.step()
    after = weights(trainer)
    assert not torch.equal(before["g.mapping.w_avg"], after["g.mapping.w_avg"])
    magnitudes = [name for name in before if name.startswith("g.") and name.endswith("magnitude_ema")]
    assert all(not torch.equal(before[name], after[name]) for name in magnitudes)
    # Nothing was seen before the first step: the mean is a copy.
    assert all(torch.equal(after[name], after[f"ema.{name.removeprefix('g.')}"]) for name in after if name[:2] == "g.")


def test_the_average_of_a_model_that_was_trained_before_is_not_begun_anew() -> None:
    averaged, _ = tiny_gan.networks("stylegan3-t", seed=7)
    mean = {name: value.detach().clone() for name, value in averaged.named_parameters()}
    trainer = tiny_gan.trainer("stylegan3-t", averaged=averaged, transferred=True, ema_half_life=8000.0)
    trainer.step()
    live = dict(trainer.generator.named_parameters())
    for name, value in trainer.ema.model.named_parameters():
        way = float((live[name].detach() - mean[name]).abs().max())
        assert float((value - mean[name]).abs().max()) < 0.01 * way + 1e-6, name
    assert trainer.controller._step == pytest.approx(4 * 8 / 100_000)  # type: ignore[attr-defined]


def test_classes_reach_both_networks() -> None:
    trainer = steps(tiny_gan.trainer("r3gan", classes=3), 2)
    for network in (trainer.generator, trainer.discriminator.head):  # type: ignore[union-attr]
        assert float(network.embed.weight.detach().abs().sum()) > 0  # type: ignore[union-attr]
    fresh, judge = tiny_gan.networks("r3gan", 3)
    assert not torch.equal(trainer.generator.embed.weight, fresh.embed.weight)  # type: ignore[union-attr]
    assert not torch.equal(trainer.discriminator.head.embed.weight, judge.head.embed.weight)  # type: ignore[union-attr]


def test_augmentation_rises_by_feedback_when_all_real_images_are_known() -> None:
    trainer = tiny_gan.trainer("r3gan", augment_p=tiny_gan.constant(0.0))
    # A discriminator that gives every real image more than its fake.
    trainer._objective.discriminator = _knowing(trainer)  # type: ignore[method-assign]
    steps(trainer, 4)
    assert trainer.p == pytest.approx(4 * 8 / 500_000)


def _knowing(trainer: Trainer) -> Any:
    losses = trainer._objective.discriminator

    def knows(draw: Any, moment: Any) -> Any:
        return replace(losses(draw, moment), signs=torch.ones(len(draw.numbers)))

    return knows


def test_augmentation_by_a_course_follows_it_and_may_be_raised() -> None:
    course = Ramp(start=0.0, end=0.4, kimg=0.016)
    trainer = tiny_gan.trainer("stylegan3-t", augment="fixed", augment_p=course)
    found = [trainer.p]
    for _ in range(2):
        trainer.step()
        found.append(trainer.p)
    assert found == pytest.approx([0.0, 0.2, 0.4])
    assert trainer.raise_augmentation() == trainer.p == pytest.approx(0.5)
    trainer.step()
    assert float(trainer.pipe.p) == pytest.approx(0.5)


def test_without_augmentation_the_images_are_what_the_discriminator_sees() -> None:
    plain = tiny_gan.trainer("stylegan3-t", augment="none", augment_p=tiny_gan.constant(0.0))
    augmented = tiny_gan.trainer(
        "stylegan3-t", augment="fixed", augment_p=tiny_gan.constant(1.0), transforms=EVERYTHING
    )
    draws = [one._draw() for one in (plain, augmented)]
    assert torch.equal(draws[0].real.geometry, torch.eye(3, dtype=torch.float64).expand(8, 3, 3))
    assert not torch.equal(draws[1].real.geometry, draws[0].real.geometry)
    # The numbers after it do not depend on p.
    assert torch.equal(plain.random.get_state(), augmented.random.get_state())


def test_a_blur_fades_out() -> None:
    trainer = tiny_gan.trainer("stylegan3-r", sigma=Ramp(start=2.0, end=0.0, kimg=0.016, shape="linear"))
    sigmas = []
    for _ in range(3):
        sigmas.append(trainer._moment().sigma)
        trainer.step()
    assert sigmas == pytest.approx([2.0, 1.0, 0.0])


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_half_precision_is_for_feature_maps_only(architecture: str) -> None:
    full, half = (steps(tiny_gan.trainer(architecture, mixed_precision=p), 2) for p in ("no", "bf16"))
    assert moved(weights(full), weights(half)) > 0
    assert all(tensor.dtype == torch.float32 for tensor in weights(half).values())
    assert full.losses["generator"] == pytest.approx(half.losses["generator"], abs=0.2)


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_numbers_that_are_none_end_the_training_and_leave_the_networks_alone(network: str) -> None:
    trainer = steps(tiny_gan.trainer("stylegan3-t"), 1)
    other = "discriminator" if network == "generator" else "generator"
    with torch.no_grad():
        next(getattr(trainer, network).parameters()).fill_(float("nan"))
    before = {name: value.clone() for name, value in getattr(trainer, other).named_parameters()}
    with pytest.raises(Diverged, match="at step 2") as caught:
        trainer.step()
    assert caught.value.code == "numerical_error"
    assert all(torch.equal(before[name], value) for name, value in getattr(trainer, other).named_parameters())
