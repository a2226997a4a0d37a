"""The way of a training: what is due when, the best snapshot, and early ends."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gan
import torch
from PIL import Image

from calotype.errors import JobFailed
from worker.families.gan.collapse import Action, CollapseSettings, CollapseWatch
from worker.families.gan.course import Course, Timetable
from worker.families.gan.curve import frechet_chart, loss_curve
from worker.families.gan.evaluation import Evaluation
from worker.families.gan.snapshots import Snapshot, Snapshots, grid_of
from worker.families.gan.trainer import Trainer

VARIED = np.random.default_rng(0).normal(size=(16, 8))
ALIKE = np.ones((16, 8)) + 1e-3 * VARIED


class Heard:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.steps = 0
        self.checks: list[int] = []
        self.snapshots: list[tuple[int, bool]] = []
        self.said: list[str] = []

    def step(self, losses: Any) -> None:
        self.steps += 1

    def check(self, check: Any) -> None:
        self.checks.append(check.step)

    def snapshot(self, snapshot: Snapshot, grid: Path, *, is_best: bool) -> None:
        self.snapshots.append((snapshot.step, is_best))

    def say(self, message: str) -> None:
        self.said.append(message)


class Looks:
    """An evaluation whose findings are told beforehand, by step."""

    def __init__(self, trainer: Trainer, collapsed_from: int, distances: dict[int, float]) -> None:
        self.trainer, self.collapsed_from, self.distances = trainer, collapsed_from, distances
        #: What happens in the middle of a look.
        self.during: Callable[[], None] = lambda: None

    def generated(self, generator: Any, count: int) -> Any:
        return ALIKE if self.trainer.step_count >= self.collapsed_from else VARIED

    def real(self, count: int) -> Any:
        return VARIED + 0.01

    def frechet(self, generator: Any, count: int) -> float:
        self.during()
        return self.distances.get(self.trainer.step_count, 50.0)

    def class_by_class(self, generator: Any, rows: int, columns: int) -> list[Image.Image]:
        return [Image.new("RGB", (16, 16))] * (rows * columns)


class Run:
    """A course of ten steps on a tiny trainer: a look of the watch every step, a snapshot every second."""

    def __init__(
        self,
        folder: Path,
        *,
        action: Action | None = Action.STOP,
        collapsed_from: int = 100,
        distances: dict[int, float] | None = None,
        checkpoint_every: int = 3,
        seed: int = 0,
    ) -> None:
        self.trainer = tiny_gan.trainer("r3gan", steps=10, seed=seed)
        self.looks = Looks(self.trainer, collapsed_from, distances or {})
        self.heard, self.saved = Heard(), []
        self.pulse: Callable[[], None] = lambda: None
        settings = (
            None if action is None else CollapseSettings(action=action, every_steps=1, patience=2, warmup_steps=0)
        )
        self.course = Course(
            self.trainer,
            self.looks,  # type: ignore[arg-type]
            Snapshots(folder),
            None if settings is None else CollapseWatch(settings),
            Timetable(snapshot_every=2, checkpoint_every=checkpoint_every, frechet_samples=16, watch_samples=16),
            self.heard,
            pulse=lambda: self.pulse(),
            checkpoint=lambda: self.saved.append(self.trainer.step_count),
        )
        #: The generator's first weight after each step.
        self.first: dict[int, float] = {}
        listen = self.heard.step

        def note(losses: Any) -> None:
            self.first[self.trainer.step_count] = self.weight
            listen(losses)

        self.heard.step = note  # type: ignore[method-assign]

    @property
    def weight(self) -> float:
        return float(next(self.trainer.generator.parameters()).detach().flatten()[0])

    def save(self, folder: Path) -> None:
        self.trainer.save(folder / "state")
        if self.course.snapshots.folder.is_dir():
            shutil.copytree(self.course.snapshots.folder, folder / "snapshots")
        (folder / "course.json").write_text(json.dumps(self.course.state_dict()))

    def load(self, folder: Path) -> None:
        self.trainer.load(folder / "state")
        if (folder / "snapshots").is_dir():
            shutil.copytree(folder / "snapshots", self.course.snapshots.folder)
        self.course.load_state_dict(json.loads((folder / "course.json").read_text()))


def test_everything_is_done_when_it_is_due(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", distances={2: 40.0, 4: 30.0, 6: 20.0, 8: 25.0, 10: 35.0})
    run.course.run()
    assert run.heard.steps == 10
    assert run.heard.checks == list(range(1, 11))
    assert run.heard.snapshots == [(2, True), (4, True), (6, True), (8, False), (10, False)]
    assert run.saved == [3, 6, 9]
    assert run.course.stopped is None
    assert [path.name for path in run.course.snapshots.grids()] == [f"step-{n:07d}.png" for n in (2, 4, 6, 8, 10)]
    assert all(path.is_file() for path in run.course.snapshots.grids())


def test_at_the_end_the_networks_are_those_of_the_best_snapshot(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", distances={6: 20.0})
    run.course.run()
    best = run.course.snapshots.best
    assert best is not None and best.step == 6
    assert run.weight == run.first[6] != run.first[10]


def test_the_last_step_has_a_snapshot_whatever_the_interval(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", action=None)
    run.course._plan = Timetable(snapshot_every=7, checkpoint_every=100, frechet_samples=16, watch_samples=16)
    run.course.run()
    assert [step for step, _ in run.heard.snapshots] == [7, 10]


def test_a_collapse_stops_the_training_and_keeps_the_best_from_before(tmp_path: Path) -> None:
    # Snapshots of a collapsed generator do not count, whatever their distance.
    run = Run(tmp_path / "s", collapsed_from=6, distances={2: 60.0, 4: 50.0, 6: 1.0})
    run.course.run()
    assert run.course.stopped is not None
    assert (run.course.stopped.reason, run.course.stopped.step) == ("mode_collapse", 7)
    assert "looks collapsed" in run.course.stopped.detail
    assert run.heard.snapshots == [(2, True), (4, True), (6, False)]
    assert run.weight == run.first[4]
    assert run.heard.said[-1].startswith("stopped at step 7: At step 7, for 2 checks in a row")
    assert run.heard.said[-1].endswith("Step 4's snapshot is kept.")


def test_a_collapse_before_any_good_snapshot_fails_the_job_with_the_reason(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", collapsed_from=0)
    with pytest.raises(JobFailed, match="for 2 checks in a row, the generator looks collapsed") as caught:
        run.course.run()
    assert (caught.value.code, caught.value.retryable) == ("mode_collapse", False)
    assert "nothing is kept" in caught.value.detail


def test_a_warning_goes_on_to_the_end(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", action=Action.WARN, collapsed_from=6)
    run.course.run()
    assert run.heard.steps == 10 and run.course.stopped is None
    assert run.course.watch is not None and run.course.watch.result()["acted_at"] == [7, 9]


def test_a_collapse_may_raise_augmentation_instead(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", action=Action.RAISE_AUGMENTATION, collapsed_from=6)
    before = run.trainer.p
    run.course.run()
    assert run.trainer.least_p == pytest.approx(before + 0.2, abs=1e-3)
    assert [line.rpartition("at least ")[2][:4] for line in run.heard.said] == ["0.60", "0.70"]


def broken_at(run: Run, step: int) -> None:
    def break_it() -> None:
        if run.trainer.step_count == step:
            with torch.no_grad():
                next(run.trainer.generator.parameters()).fill_(float("nan"))

    run.pulse = break_it


def test_numbers_that_are_none_stop_the_training_and_keep_the_best_snapshot(tmp_path: Path) -> None:
    run = Run(tmp_path / "s", distances={2: 30.0, 4: 40.0})
    broken_at(run, 5)
    run.course.run()
    assert run.course.stopped is not None
    assert (run.course.stopped.reason, run.course.stopped.step) == ("numerical_error", 5)
    assert run.weight == run.first[2]


def test_numbers_that_are_none_before_any_snapshot_fail_the_job(tmp_path: Path) -> None:
    run = Run(tmp_path / "s")
    broken_at(run, 1)
    with pytest.raises(JobFailed, match=r"at step 2.* nothing is kept") as caught:
        run.course.run()
    assert caught.value.code == "numerical_error"


class Interruption(BaseException):
    pass


@pytest.mark.parametrize(
    ("moment", "step"), [("between steps", 4), ("in the middle of a snapshot", 4), ("in the middle of a snapshot", 10)]
)
def test_a_course_that_was_interrupted_is_the_undisturbed_one(moment: str, step: int, tmp_path: Path) -> None:
    distances = {2: 40.0, 4: 20.0, 6: 30.0, 8: 25.0, 10: 45.0}
    options: dict[str, Any] = {"action": Action.RAISE_AUGMENTATION, "collapsed_from": 3, "distances": distances}
    undisturbed = Run(tmp_path / "whole", **options)
    undisturbed.course.run()
    first = Run(tmp_path / "first", **options)

    def interrupt() -> None:
        if first.trainer.step_count == step:
            raise Interruption

    if moment == "between steps":
        first.pulse = interrupt
    else:
        first.looks.during = interrupt
    with pytest.raises(Interruption):
        first.course.run()
    first.save(tmp_path / "checkpoint")
    second = Run(tmp_path / "second", seed=3, **options)
    second.load(tmp_path / "checkpoint")
    second.course.run()
    assert second.course.state_dict() == undisturbed.course.state_dict()
    for run in (undisturbed, second):
        run.save(tmp_path / str(id(run)))
    for name in (
        "state/trainer.safetensors",
        "state/trainer.json",
        "course.json",
        "snapshots/best/averaged.safetensors",
    ):
        ends = [(tmp_path / str(id(run)) / name).read_bytes() for run in (undisturbed, second)]
        assert ends[0] == ends[1], name
    assert second.saved == [at for at in undisturbed.saved if at > step]


def test_a_watch_with_too_few_images_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = tiny_gan.trainer("r3gan", count=15)
    watch = CollapseWatch(CollapseSettings())
    plan = Timetable(snapshot_every=2, checkpoint_every=2, frechet_samples=16, watch_samples=128)
    with pytest.raises(JobFailed, match="at least 16 images, and the dataset has 15") as caught:
        Course(trainer, Looks(trainer, 100, {}), Snapshots(tmp_path), watch, plan, Heard())  # type: ignore[arg-type]
    assert caught.value.code == "bad_input"


# Looking at a generator


class Colours(torch.nn.Module):
    """A backbone whose features are an image's mean colour and its place."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


def evaluation(classes: int = 0, count: int = 24, **options: Any) -> Evaluation:
    images = tiny_gan.images(count, tuple("abcdefgh"[:classes]))
    return Evaluation(images, seed=5, device=torch.device("cpu"), backbone=Colours(), **options)  # type: ignore[arg-type]


def test_two_looks_at_a_generator_see_the_same(tmp_path: Path) -> None:
    generator, _ = tiny_gan.networks("r3gan", 3)
    first, second = (evaluation(3).generated(generator.eval(), 40) for _ in range(2))
    assert first.shape == (40, 3)
    assert np.array_equal(first, second)


def test_the_real_sample_is_drawn_once_and_has_no_image_twice() -> None:
    looks = evaluation()
    all_of_them = looks.real(100)
    assert len(all_of_them) == 24
    assert len({tuple(row) for row in looks.real(10)}) == 10
    assert np.array_equal(looks.real(10), all_of_them[:10])
    assert np.array_equal(evaluation().real(10), all_of_them[:10])


def test_a_generator_of_the_real_images_is_at_no_distance() -> None:
    looks = evaluation()

    class Copies(torch.nn.Module):
        config = tiny_gan.networks("r3gan")[0].config

        def forward(self, z: torch.Tensor, labels: Any) -> torch.Tensor:
            self.given = getattr(self, "given", 0)
            numbers = torch.arange(self.given, self.given + len(z)) % 24
            self.given += len(z)
            return tiny_gan.images().images(numbers)

    copies: Any = Copies()
    assert looks.frechet(copies, 24) == pytest.approx(0.0, abs=1e-6)
    generator, _ = tiny_gan.networks("r3gan")
    assert looks.frechet(generator, 24) > 100


def test_a_grid_has_a_column_a_class_and_a_row_a_latent() -> None:
    generator, _ = tiny_gan.networks("r3gan", 3)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Spy(torch.nn.Module):
        config = generator.config

        def forward(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            seen.append((z, labels))
            return generator(z, labels)

    spy: Any = Spy()
    pictures = evaluation(3).class_by_class(spy, 2, 8)
    assert len(pictures) == 6
    ((latents, labels),) = seen
    assert labels.argmax(dim=1).tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(latents[0], latents[2]) and not torch.equal(latents[0], latents[3])
    assert grid_of(pictures, 3).size == (3 * 18 + 2, 2 * 18 + 2)


def test_where_memory_runs_out_fewer_are_made_at_once() -> None:
    generator, _ = tiny_gan.networks("r3gan")
    sizes: list[int] = []

    class Small(torch.nn.Module):
        config = generator.config

        def forward(self, z: torch.Tensor, labels: Any) -> torch.Tensor:
            sizes.append(len(z))
            if len(z) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return generator(z)

    small: Any = Small()
    looks = evaluation()
    # A pixel at the edge of two values may fall to either.
    assert np.abs(looks.generated(small, 40) - evaluation().generated(generator, 40)).max() < 0.1
    assert sizes == [8] + 10 * [4]


def test_a_look_can_be_interrupted() -> None:
    generator, _ = tiny_gan.networks("r3gan")

    def interrupt() -> Iterator[None]:
        raise Interruption

    with pytest.raises(Interruption):
        evaluation(pulse=interrupt).generated(generator, 8)


def test_a_generator_that_makes_no_numbers_is_found_out() -> None:
    generator, _ = tiny_gan.networks("r3gan")
    with torch.no_grad():
        generator.image.bias.fill_(float("nan"))
    with pytest.raises(JobFailed, match="not finite") as caught:
        evaluation().frechet(generator, 8)
    assert caught.value.code == "numerical_error"


# Curves


def test_the_loss_curve_has_both_networks_and_ends_with_the_last_step() -> None:
    curve = loss_curve({"generator": [1.0, 3.0], "discriminator": [2.0, 4.0], "penalty": [9.0]})
    assert curve == [
        {"step": 1, "generator": 1.0, "discriminator": 2.0},
        {"step": 2, "generator": 3.0, "discriminator": 4.0},
    ]
    long = loss_curve({"generator": [float(step % 2) for step in range(1001)], "discriminator": [1.0] * 1001})
    assert len(long) <= 400 and long[-1]["step"] == 1001
    assert long[0] == {"step": 3, "generator": pytest.approx(1 / 3, abs=1e-6), "discriminator": 1.0}


def test_the_chart_is_a_picture_and_needs_a_snapshot() -> None:
    curve = [{"step": 10, "value": 120.0}, {"step": 20, "value": 80.0}]
    chart = frechet_chart(curve, metric="FD", best_step=20, stopped_at=25)
    assert Image.open(io.BytesIO(chart)).size == (1152, 640)
    with pytest.raises(ValueError, match="no snapshot"):
        frechet_chart([], metric="FD", best_step=0, stopped_at=None)


# Learning


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_a_training_comes_nearer_to_the_images(architecture: str) -> None:
    trainer = tiny_gan.trainer(
        architecture,
        count=64,
        batch_size=16,
        penalty_every=4,
        augment="none",
        ema_half_life=200.0,
        generator_lr=tiny_gan.constant(0.0025),
    )
    looks = Evaluation(trainer.images, seed=5, device=torch.device("cpu"), backbone=Colours())  # type: ignore[arg-type]
    before = looks.frechet(trainer.ema.model, 200)
    for _ in range(320):
        trainer.step()
    assert looks.frechet(trainer.ema.model, 200) < 0.6 * before
