"""The recipe of the GAN: a training by the clock that can be gone on with."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from starter.recipe import finish, gan
from starter.recipe.evaluate_gan import by_colour, generate
from starter.recipe.pictures import colour_rate
from starter.recipe.recolour import LABELS, numbers_of
from worker.families.gan.data import TrainingImages
from worker.families.gan.networks.r3gan import R3GANGenerator
from worker.families.gan.replicas import Replicas
from worker.families.gan.sampling import make_sampler
from worker.families.gan.stored import load_generator, read_description
from worker.families.gan.trainer import Trainer

TINY = replace(gan.NETWORKS, channel_base=256, channel_max=16)


@pytest.fixture
def own() -> TrainingImages:
    """Spots of two colours on white."""
    pixels = torch.full((8, 3, 64, 64), 255, dtype=torch.uint8)
    for number in range(8):
        pixels[number, number % 2, 10 : 20 + number, 10:40] = 20
        pixels[number, 2, 10 : 20 + number, 10:40] = 20
    classes = torch.tensor([LABELS.index("green"), LABELS.index("red")]).repeat(4)
    return TrainingImages(pixels=pixels, labels=LABELS, classes=classes)


def new(own: TrainingImages, steps: int = 4, replicas: Replicas | None = None, **changes: Any) -> Trainer:
    settings = gan.stretched(replace(gan.SETTINGS, batch_size=4, **changes), steps)
    return gan.new_trainer(own, settings, TINY, replicas)


def lead_or_follow(rank: int, port: int, own: TrainingImages, folder: Path) -> None:
    """One of two processes; the first leaves its generator after two steps."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    replicas = gan.processes()
    assert isinstance(replicas, gan.Processes)
    # The follower reckons with another length until it hears the leader's.
    trainer = new(own, steps=4 if rank == 0 else 9, replicas=replicas, mixed_precision="no")
    if rank:
        gan.follow(trainer, folder)
        assert trainer.step_count == 2
        assert trainer.settings.steps == 4
        return
    trainer.step()
    trainer.step()
    replicas.end()
    state = {name: tensor.contiguous() for name, tensor in trainer.generator.state_dict().items()}
    save_file(state, folder / "generator.safetensors")


@pytest.fixture
def run(own: TrainingImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gan.Run:
    monkeypatch.setattr(gan, "LOOKED_AT", 4)
    return gan.Run(new(own), own, tmp_path)


def test_ramps_lead_over_the_whole_training() -> None:
    settings = gan.stretched(gan.SETTINGS, 1000)
    images = 1000 * settings.batch_size
    assert settings.steps == 1000
    assert settings.generator_lr.at(images // 2) > 2 * gan.SETTINGS.generator_lr.end
    assert settings.generator_lr.at(images) == pytest.approx(gan.SETTINGS.generator_lr.end)
    assert settings.gamma.at(0) == gan.SETTINGS.gamma.start


def test_a_training_goes_on_where_its_checkpoint_was_written(run: gan.Run, own: TrainingImages, tmp_path: Path) -> None:
    trainer = run._trainer
    trainer.step()
    trainer.step()
    run.look()
    run.save()
    trainer.step()
    settings = gan.stretched(replace(gan.SETTINGS, batch_size=4), gan.begun_steps(tmp_path / "training"))
    again = gan.new_trainer(own, settings, TINY)
    other = gan.Run(again, own, tmp_path)
    assert (again.step_count, other.curve) == (2, run.curve)
    again.step()
    for name, tensor in trainer.generator.state_dict().items():
        assert torch.equal(again.generator.state_dict()[name], tensor)


def test_the_time_given_is_the_time_taken_and_leaves_a_version(run: gan.Run, tmp_path: Path) -> None:
    run.train(0.0)
    assert run._trainer.step_count == 0
    stored = load_generator(tmp_path / "version", torch.device("cpu"))
    assert stored.labels == list(LABELS)


@pytest.mark.timeout(300)
def test_two_processes_take_the_steps_that_one_would_take(own: TrainingImages, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(lead_or_follow, (port, own, tmp_path), nprocs=2)
    alone = new(own, mixed_precision="no")
    alone.step()
    alone.step()
    together = load_file(tmp_path / "generator.safetensors")
    for name, tensor in alone.generator.state_dict().items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4)


def test_only_the_best_generator_is_kept(run: gan.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distances = iter([90.0, 80.0, 85.0])
    monkeypatch.setattr(run._evaluation, "frechet", lambda generator, count: next(distances))
    for _ in range(3):
        run._trainer.step()
        run.look()
    assert [look["distance"] for look in run.curve] == [90.0, 80.0, 85.0]
    assert read_description(tmp_path / "version").source["steps"] == 2


def test_an_image_of_the_evaluation_depends_on_its_seed_and_label_alone(own: TrainingImages) -> None:
    sampler = make_sampler(new(own).ema.model)
    labels = ["red", "blue", "gray", "teal", "red"]
    alone = [generate(sampler, [label], first_seed=number)[0] for number, label in enumerate(labels)]
    together = generate(sampler, labels, batch=3)
    assert all(
        max(abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True)) <= 1
        for one, other in zip(alone, together, strict=True)
    )


def test_the_sheet_has_a_column_a_colour(own: TrainingImages) -> None:
    sheet = by_colour(make_sampler(new(own).ema.model), rows=2)
    assert sheet.size == (11 * 68 + 4, 2 * 68 + 4)


def test_finishing_moves_colours_to_the_label_and_leaves_areas_alone(
    own: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finish, "IMAGES", 64)
    monkeypatch.setattr(finish, "STEPS", 100)
    monkeypatch.setattr(finish, "STAY", 0.0)
    generator = new(own).ema.model
    assert isinstance(generator, R3GANGenerator)
    before = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    words = ["red", "blue"] * 16
    hits = colour_rate(generate(make_sampler(generator), words), words)
    finish.calibrate(generator, torch.tensor(numbers_of(words)))
    assert colour_rate(generate(make_sampler(generator), words), words) > max(0.5, hits)
    changed = {name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.rsplit(".", 1)[0] for name in changed} == {"image.hidden", "image.colours"}


def test_emphasis_sharpens_the_shares_and_widens_the_latents(own: TrainingImages) -> None:
    generator = new(own).ema.model
    assert isinstance(generator, R3GANGenerator)
    shares, strength = generator.image.shares.weight.clone(), generator.basis.strength.weight.clone()
    finish.emphasise(generator, sharper=2.0, wider=1.5)
    torch.testing.assert_close(generator.image.shares.weight, 2 * shares)
    width = generator.config.z_dim
    torch.testing.assert_close(generator.basis.strength.weight[:, :width], 1.5 * strength[:, :width])
    assert torch.equal(generator.basis.strength.weight[:, width:], strength[:, width:])
