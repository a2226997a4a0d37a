"""Images of a GAN: what a seed means, and jobs that share a call of the network."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import small_gan
import torch
from PIL import Image

from calotype import specs
from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.batch import Batch, Finishing, NobodyLeft
from worker.context import CancelRequested, HandlerResult, JobContext
from worker.families.gan import generate
from worker.families.gan.load import Loaded
from worker.families.gan.plan import plan
from worker.families.gan.sampling import draw, make_sampler, slerp, to_images
from worker.families.gan.stored import StoredGenerator, load_generator
from worker.members import Member
from worker.signals import Signals

CPU = torch.device("cpu")
Pixels = np.ndarray[Any, Any]


def loaded_from(stored: StoredGenerator) -> Loaded:
    sampler = make_sampler(stored.generator)
    return Loaded(stored=stored, sampler=sampler, device=CPU, dtype=torch.float32, compiled=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    """By architecture, class-conditional; and one without classes."""
    folder = tmp_path_factory.mktemp("gans")
    for name, classes in (("stylegan3-t", 3), ("r3gan", 3), ("unconditional", 0)):
        architecture = "stylegan3-t" if name == "unconditional" else name
        small_gan.save_small_gan(folder / name, architecture, classes=classes)
    return {path.name: loaded_from(load_generator(path, CPU)) for path in sorted(folder.iterdir())}


class Together:
    """Jobs in one batch, and what was handed over of each, in the order in which it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.outcomes: dict[Member, Finishing | BaseException] = {}

    def add(self, model: str = "stylegan3-t", **wishes: Any) -> Member:
        values = {"seed": 5, "truncation_psi": 1.0} | wishes
        request = {"kind": "generate", "family": "gan", "model": f"{model}@1", "input": values}
        job: Any = SimpleNamespace(id=uuid4(), tenant_id=uuid4(), queue="gan.generate", epoch=1, timeout_seconds=9.0)
        nothing: Any = None
        member = Member(job=job, signals=Signals(shutdown=threading.Event()))
        workdir = self.folder / str(job.id)
        workdir.mkdir()
        member.context = JobContext(
            job=job,
            spec=specs.parse(request),
            settings=dataclasses.replace(Settings(), device="cpu"),
            store=nothing,
            models=nothing,
            workdir=workdir,
            engine=nothing,
            signals=member.signals,
        )
        self.members.append(member)
        return member

    def run(self) -> None:
        generate.run_batch(Batch(self.members, self._hand_over, Settings()))

    def _hand_over(self, member: Member, outcome: Finishing | BaseException) -> None:
        member.open = False
        self.outcomes[member] = outcome

    def result(self, member: Member) -> HandlerResult:
        outcome = self.outcomes[member]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome()

    def pictures(self, member: Member) -> list[Pixels]:
        outputs = [one for one in self.result(member).outputs if one.content_type == "image/png"]
        return [np.asarray(Image.open(output.path)).astype(int) for output in outputs]

    def failure(self, member: Member) -> BaseException:
        outcome = self.outcomes[member]
        assert isinstance(outcome, BaseException)
        return outcome


@pytest.fixture(autouse=True)
def loading(monkeypatch: pytest.MonkeyPatch, models: dict[str, Loaded]) -> None:
    """The registry and the cache are tested elsewhere."""
    monkeypatch.setattr(JobContext, "resolve", lambda ctx, ref: SimpleNamespace(key=ref.partition("@")[0]))
    monkeypatch.setattr(generate, "load", lambda ctx, version: models[version.key])


@pytest.fixture
def together(tmp_path: Path) -> Together:
    return Together(tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., list[Pixels]]:
    """`alone(model, **input)`: the images of such a job when it runs by itself."""

    def make(*arguments: Any, **wishes: Any) -> list[Pixels]:
        folder = tmp_path / str(uuid4())
        folder.mkdir()
        single = Together(folder)
        member = single.add(*arguments, **wishes)
        single.run()
        return single.pictures(member)

    return make


Alone = Callable[..., list[Pixels]]


def same(pictures: list[Pixels], others: list[Pixels]) -> bool:
    """Equal up to one of 255 levels: how many images a call makes may decide how its sums are rounded."""
    pairs = list(zip(pictures, others, strict=True))
    assert all(float(one.std()) > 1 for one, _ in pairs), "flat images are all alike"
    return all(int(np.abs(one - other).max()) <= 1 for one, other in pairs)


ARCHITECTURES = pytest.mark.parametrize("model", ["stylegan3-t", "r3gan", "unconditional"])


@ARCHITECTURES
def test_image_number_i_is_the_first_of_seed_plus_i(model: str, alone: Alone) -> None:
    three = alone(model, seed=7, num_images=3)
    assert same(three, [alone(model, seed=seed)[0] for seed in (7, 8, 9)])
    assert not same(three[:1], three[1:2])


@ARCHITECTURES
def test_an_image_is_the_same_alone_and_beside_others(model: str, together: Together, alone: Alone) -> None:
    wishes = [{"seed": 1, "num_images": 2}, {"seed": 40}, {"seed": 1, "num_images": 3}]
    members = [together.add(model, **one) for one in wishes]
    together.run()
    for member, one in zip(members, wishes, strict=True):
        assert same(together.pictures(member), alone(model, **one))


def test_jobs_that_want_different_things_share_a_call(together: Together, alone: Alone) -> None:
    wishes: list[dict[str, Any]] = [
        {"truncation_psi": 0.5, "label": "red"},
        {"label": "blue", "num_images": 2},
        {"style_mixing": {"seed": 9, "first_layer": 0, "last_layer": 2}},
    ]
    members = [together.add(**one) for one in wishes]
    together.run()
    for member, one in zip(members, wishes, strict=True):
        assert same(together.pictures(member), alone(**one))
    results = [together.result(member).result for member in members]
    assert [one["batch_size"] for one in results] == [4, 4, 4]
    assert [one["batch_position"] for one in results] == [0, 1, 3]


def test_a_call_takes_no_more_images_than_its_limit(
    together: Together, models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    sampler = models["stylegan3-t"].sampler
    real = sampler.images

    def images(points: torch.Tensor) -> torch.Tensor:
        calls.append(len(points))
        return real(points)

    monkeypatch.setattr(sampler, "images", images)
    member = together.add(num_images=40)
    together.run()
    assert calls == [16, 16, 8]
    assert [output.seed for output in together.result(member).outputs] == list(range(5, 45))


def test_out_of_memory_makes_calls_smaller_and_changes_no_image(
    together: Together, alone: Alone, models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(num_images=6)
    sampler = models["stylegan3-t"].sampler
    real = sampler.images

    def images(points: torch.Tensor) -> torch.Tensor:
        if len(points) > 2:
            raise torch.OutOfMemoryError("no room")
        return real(points)

    monkeypatch.setattr(sampler, "images", images)
    member = together.add(num_images=6)
    together.run()
    assert same(together.pictures(member), expected)
    assert together.result(member).result["batch_size"] == 2


def test_artifacts_say_size_and_seed_and_the_result_says_how(together: Together) -> None:
    member = together.add(num_images=2, seed=3, truncation_psi=0.7, label="green")
    together.run()
    done = together.result(member)
    assert [(one.name, one.width, one.height, one.seed) for one in done.outputs] == [
        ("image-000.png", 16, 16, 3),
        ("image-001.png", 16, 16, 4),
    ]
    told = {name: done.result[name] for name in ("model", "truncation_psi", "labels", "frames", "dtype", "compiled")}
    assert told == {
        "model": "stylegan3-t@1", "truncation_psi": 0.7, "labels": ["green", "green"], "frames": 0,
        "dtype": "float32", "compiled": False,
    }  # fmt: skip


@ARCHITECTURES
def test_labels_make_other_images_and_no_label_is_drawn_by_the_seed(
    model: str, together: Together, alone: Alone
) -> None:
    member = together.add(model, num_images=12)
    together.run()
    labels = together.result(member).result["labels"]
    if model == "unconditional":
        assert labels is None
        return
    assert set(labels) == set(small_gan.LABELS)
    drawn = [alone(model, seed=5 + number, label=label)[0] for number, label in enumerate(labels)]
    assert same(together.pictures(member), drawn)
    red, blue = (alone(model, label=label) for label in ("red", "blue"))
    assert not same(red, blue)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("stylegan3-t", "no label 'pink'; it has: red, green, blue."),
        ("unconditional", "no label 'pink'; it knows none."),
    ],
)
def test_a_label_that_the_model_has_not_fails_only_its_own_job(model: str, message: str, together: Together) -> None:
    wrong, fine = together.add(model, label="pink"), together.add(model)
    together.run()
    error = together.failure(wrong)
    assert isinstance(error, JobFailed)
    assert error.code == "bad_input"
    assert message in error.detail
    assert len(together.result(fine).outputs) == 1


def test_truncation_goes_from_the_mean_to_the_whole_variety(alone: Alone) -> None:
    mean, mean_again = alone(truncation_psi=0.0, seed=1), alone(truncation_psi=0.0, seed=2, label="blue")
    assert same(mean, mean_again)
    whole, half = alone(truncation_psi=1.0, seed=1), alone(truncation_psi=0.5, seed=1)
    far, near = (float(np.abs(one[0] - mean[0]).mean()) for one in (whole, half))
    assert 0 < near < far


def test_an_image_lends_its_style_to_the_layers_named(alone: Alone) -> None:
    last = small_gan.STYLE_LAYERS - 1
    own, other = alone(seed=1, label="blue"), alone(seed=9, label="blue")

    def mixed(first: int, end: int) -> list[Pixels]:
        layers = {"seed": 9, "first_layer": first, "last_layer": end}
        return alone(seed=1, label="blue", style_mixing=layers)

    assert same(mixed(0, last), other)
    fine = mixed(last, last)
    assert not same(fine, own)
    assert not same(fine, other)
    coarse = mixed(0, last - 1)
    assert not same(coarse, fine)


def test_a_sampler_mixes_exactly_the_layers_named(models: dict[str, Loaded]) -> None:
    sampler = models["stylegan3-t"].sampler
    points, styles = sampler.points([1], [0], 1.0), sampler.points([2], [0], 1.0)
    mixed = sampler.mix(points, styles, 2, 3)
    taken = [bool(torch.equal(mixed[0, layer], styles[0, layer])) for layer in range(small_gan.STYLE_LAYERS)]
    assert taken == [False, False, True, True, False, False]
    assert torch.equal(mixed[0, [0, 1, 4, 5]], points[0, [0, 1, 4, 5]])


@pytest.mark.parametrize("model", ["stylegan3-t", "r3gan"])
def test_an_interpolation_visits_every_image_and_comes_back(model: str, together: Together) -> None:
    wish = {"frames": 4, "frames_per_second": 30}
    member = together.add(model, num_images=3, interpolation=wish)
    together.run()
    done = together.result(member)
    assert [one.name for one in done.outputs] == [*(f"image-00{n}.png" for n in range(3)), "interpolation.webp"]
    animation = done.outputs[-1]
    assert (animation.content_type, animation.width, animation.height) == ("image/webp", 16, 16)
    assert done.result["frames"] == 12
    with Image.open(animation.path) as film:
        assert getattr(film, "n_frames", 1) == 12
        assert film.info["loop"] == 0
        shown = []
        durations = []
        for number in range(12):
            film.seek(number)
            film.load()
            durations.append(film.info["duration"])
            shown.append(np.asarray(film.convert("RGB")).astype(int))
    assert sum(durations) == 400
    pictures = together.pictures(member)
    # Lossy: much nearer to its own image than to any other.
    for number, frame in enumerate(shown[::4]):
        errors = [float(np.abs(frame - picture).mean()) for picture in pictures]
        assert int(np.argmin(errors)) == number
        assert 2 * min(errors) < sorted(errors)[1]


def test_without_a_loop_an_interpolation_ends_at_the_last_image(models: dict[str, Loaded]) -> None:
    request = specs.GanGenerateInput(
        num_images=2, seed=1, truncation_psi=1.0, interpolation=specs.Interpolation(frames=3, loop=False)
    )
    wanted = plan(models["stylegan3-t"], request)
    assert list(wanted.frames) == [0, 2, 3, 1]
    assert wanted.num_frames == request.num_frames == 4
    start, end, *between = wanted.points
    assert len(between) == 2
    for share, point in zip((1 / 3, 2 / 3), between, strict=True):
        torch.testing.assert_close(point, start + (end - start) * share)


@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("frames", [1, 5])
def test_as_many_points_are_made_as_submission_counted(models: dict[str, Loaded], loop: bool, frames: int) -> None:
    request = specs.GanGenerateInput(
        num_images=3, seed=1, truncation_psi=1.0, interpolation=specs.Interpolation(frames=frames, loop=loop)
    )
    wanted = plan(models["r3gan"], request)
    assert (len(wanted.points), wanted.num_frames) == (request.num_made, request.num_frames)


def test_latents_go_along_the_arc_and_keep_their_length() -> None:
    one, other = draw(1, 64, 0)[0], draw(2, 64, 0)[0]
    one, other = one / one.norm(), other / other.norm()
    half = slerp(one, other, 0.5)
    assert float(half.norm()) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(half @ one, half @ other)
    torch.testing.assert_close(slerp(one, other, 0.0), one)
    torch.testing.assert_close(slerp(one, one, 0.3), one)


def test_a_seed_means_the_same_latent_whatever_is_asked_beside_it() -> None:
    without, with_classes = draw(2**53 - 1, 8, 0), draw(2**53 - 1, 8, 11)
    assert torch.equal(without[0], with_classes[0])
    assert torch.equal(without[0], torch.randn(8, generator=torch.Generator().manual_seed(2**53 - 1)))
    assert {draw(seed, 8, 3)[1] for seed in range(30)} == {0, 1, 2}


def test_black_and_white_are_the_ends_of_the_range_and_what_lies_beyond_is_cut() -> None:
    values = torch.tensor([-1.0, -2.0, 1.0, 9.0, 0.0])
    (image,) = to_images(values.expand(1, 3, 1, 5))
    assert image is not None
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 255, 255, 128]


def test_an_image_that_is_not_finite_fails_its_own_job_alone(
    together: Together, models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = models["stylegan3-t"].sampler
    real = sampler.images

    def images(points: torch.Tensor) -> torch.Tensor:
        made = real(points)
        made[1, 0, 3, 3] = torch.nan
        return made

    monkeypatch.setattr(sampler, "images", images)
    first, broken, last = together.add(), together.add(), together.add()
    together.run()
    error = together.failure(broken)
    assert isinstance(error, JobFailed)
    assert error.code == "numerical_error"
    for member in (first, last):
        assert len(together.result(member).outputs) == 1


def test_a_job_that_is_canceled_leaves_and_the_others_get_their_images(
    together: Together, alone: Alone, models: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(num_images=20)
    sampler = models["stylegan3-t"].sampler
    real, calls = sampler.images, []
    leaver, stayer = together.add(num_images=30), together.add(num_images=20)

    def images(points: torch.Tensor) -> torch.Tensor:
        calls.append(len(points))
        leaver.signals.cancel.set()
        return real(points)

    monkeypatch.setattr(sampler, "images", images)
    together.run()
    assert isinstance(together.failure(leaver), CancelRequested)
    assert same(together.pictures(stayer), expected)
    assert calls == [16, 16, 4]


def test_when_all_have_left_nothing_more_is_made(together: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    member = together.add(num_images=64)
    member.signals.cancel.set()
    monkeypatch.setattr(generate, "_call", lambda *_: pytest.fail("it was made for nobody"))
    with pytest.raises(NobodyLeft):
        together.run()
    assert isinstance(together.failure(member), CancelRequested)


@pytest.mark.parametrize("architecture", ["stylegan3-t", "r3gan"])
def test_a_compiled_generator_makes_the_same_images_whatever_the_batch(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced as for the compiler, which takes half a minute, and run without it.
    compiled: list[object] = []
    real = torch.compile

    def traced(module: Any) -> Any:
        compiled.append(module)
        return real(module, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    generator = small_gan.small_generator(architecture).eval().requires_grad_(False)
    plain, made_over = make_sampler(generator), make_sampler(generator, compiled=True)
    assert len(compiled) == 1
    for count in (1, 3, 2):
        points = plain.points(range(count), [0] * count, 1.0)
        torch.testing.assert_close(made_over.images(points), plain.images(points), rtol=0, atol=1e-5)


def test_in_bf16_images_stay_nearly_the_same_and_are_not(models: dict[str, Loaded]) -> None:
    for model in ("stylegan3-t", "r3gan"):
        exact = models[model].sampler
        rounded = make_sampler(models[model].stored.generator, torch.bfloat16)
        points = exact.points([1, 2], [0, 1], 1.0)
        one, other = exact.images(points), rounded.images(points)
        assert other.dtype == torch.float32
        assert 0 < float((one - other).abs().mean() / one.std()) < 0.05
