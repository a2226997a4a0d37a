"""Generate jobs that share a call of the model: what each makes, and what becomes of one does not touch the others."""

from __future__ import annotations

import base64
import dataclasses
import io
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import tiny_sd3
import torch
from PIL import Image

from calotype import keys, specs
from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.batch import Batch, Finishing, NobodyLeft
from worker.context import CancelRequested, HandlerResult, JobContext
from worker.families.diffusion import generate, sampling
from worker.families.diffusion.load import Loaded
from worker.members import Member
from worker.signals import Signals


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return Loaded(pipeline=tiny_sd3.pipeline(), device=torch.device("cpu"), dtype=torch.float32, t5_tokens=0)


@pytest.fixture(autouse=True)
def loading(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    """The registry and the cache are tested elsewhere."""
    monkeypatch.setattr(generate, "plan", lambda ctx, model, adapters: SimpleNamespace(key="tiny"))
    monkeypatch.setattr(generate, "load", lambda ctx, plan: loaded)


class Together:
    """Jobs in one batch, and what was handed over of each, in the order in which it was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.outcomes: dict[Member, Finishing | BaseException] = {}

    def add(self, prompt: str = "red bird", **changes: Any) -> Member:
        values = {"prompt": prompt, "width": 32, "height": 32, "steps": 3, "guidance_scale": 3.0, "seed": 5} | changes
        request = {"kind": "generate", "family": "diffusion", "model": "tiny@1", "input": values}
        job: Any = SimpleNamespace(
            id=uuid4(), tenant_id=uuid4(), queue="diffusion.generate", epoch=1, timeout_seconds=9.0
        )
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

    def pictures(self, member: Member) -> list[bytes]:
        return [output.path.read_bytes() for output in self.result(member).outputs]

    def failure(self, member: Member) -> BaseException:
        outcome = self.outcomes[member]
        assert isinstance(outcome, BaseException)
        return outcome


@pytest.fixture
def together(tmp_path: Path) -> Together:
    return Together(tmp_path)


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., list[bytes]]:
    """`alone(prompt, **input)`: the images of such a job when it runs by itself."""
    number = 0

    def draw(*arguments: Any, **changes: Any) -> list[bytes]:
        nonlocal number
        number += 1
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        single = Together(folder)
        member = single.add(*arguments, **changes)
        single.run()
        return single.pictures(member)

    return draw


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seeds of each call of the model."""
    made: list[list[int]] = []
    real = generate.sample

    def sample(loaded: Loaded, images: Sequence[sampling.Wanted], *rest: Any) -> list[Image.Image | None]:
        made.append([image.seed for image in images])
        return real(loaded, images, *rest)

    monkeypatch.setattr(generate, "sample", sample)
    return made


def same(pictures: list[bytes], others: list[bytes]) -> bool:
    """Equal up to one of 255 levels: how many images a call makes may decide how its sums are rounded."""
    pairs = [
        tuple(np.asarray(Image.open(io.BytesIO(one))).astype(int) for one in pair)
        for pair in zip(pictures, others, strict=True)
    ]
    return all(int(np.abs(left - right).max()) <= 1 for left, right in pairs)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    """Do something after so many steps of a call, before anybody looks."""
    real = generate._on_step

    def on_step(*arguments: Any) -> sampling.OnStep:
        look = real(*arguments)

        def after(done: int, total: int) -> None:
            if done == step:
                action()
            look(done, total)

        return after

    monkeypatch.setattr(generate, "_on_step", on_step)


def test_a_job_gets_the_images_in_a_batch_that_it_gets_alone(
    together: Together, alone: Callable[..., list[bytes]], calls: list[list[int]]
) -> None:
    jobs = [
        ("red bird", {"seed": 3, "num_images": 2}),
        ("blue", {"seed": 2**53 - 1, "negative_prompt": "green"}),
        ("green", {"seed": 3, "negative_prompt": "red"}),
    ]
    members = [together.add(prompt, **changes) for prompt, changes in jobs]
    together.run()
    assert calls == [[3, 4, 2**53 - 1, 3]]
    for member, (prompt, changes) in zip(members, jobs, strict=True):
        assert same(together.pictures(member), alone(prompt, **changes))


def test_jobs_with_images_to_start_from_share_a_call_too(
    together: Together, alone: Callable[..., list[bytes]], calls: list[list[int]]
) -> None:
    jobs = [("blue", {"init_image": _noise(seed), "strength": 0.5, "seed": seed}) for seed in (1, 2)]
    members = [together.add(prompt, **changes) for prompt, changes in jobs]
    together.run()
    assert calls == [[1, 2]]
    for member, (prompt, changes) in zip(members, jobs, strict=True):
        assert same(together.pictures(member), alone(prompt, **changes))


def _noise(seed: int) -> str:
    picture = io.BytesIO()
    Image.frombytes("RGB", (32, 32), bytes((seed * 7919 * place) % 251 for place in range(3 * 32 * 32))).save(
        picture, "PNG"
    )
    return f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"


def test_a_result_says_where_in_a_batch_it_was_made_and_nothing_of_the_others(together: Together) -> None:
    first, second = together.add("red bird", num_images=2), together.add("secret green")
    together.run()
    one, two = together.result(first).result, together.result(second).result
    assert (one["batch_size"], one["batch_position"]) == (3, 0)
    assert (two["batch_size"], two["batch_position"]) == (3, 2)
    assert one["seconds"] == two["seconds"]
    # Three images share the call: a third of it for each.
    assert one["seconds_per_image"] == pytest.approx(one["seconds"] / 3, abs=1e-3)
    assert str(second.job.id) not in str(one)
    assert "secret" not in str(one)


def test_a_job_whose_image_to_start_from_is_none_fails_before_the_call(
    together: Together, calls: list[list[int]]
) -> None:
    nonsense = base64.b64encode(b"no image").decode()
    good = together.add(init_image=_noise(1), strength=0.5, seed=1)
    bad = together.add(init_image=f"data:image/png;base64,{nonsense}", strength=0.5, seed=2)
    together.run()
    assert not isinstance(together.failure(bad), CancelRequested)
    assert len(together.pictures(good)) == 1
    assert calls == [[1]]


def test_latents_that_are_no_numbers_fail_only_the_job_whose_they_are(
    together: Together, alone: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sampling.encode_captions

    def encode(pipeline: Any, texts: list[str], tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        embeds, pooled = real(pipeline, texts, tokens)
        for row, text in enumerate(texts):
            if text == "gold":
                embeds[row] = float("nan")
        return embeds, pooled

    monkeypatch.setattr(sampling, "encode_captions", encode)
    good, poisoned, other = together.add("blue"), together.add("gold"), together.add("green", seed=8)
    together.run()
    failure = together.failure(poisoned)
    assert isinstance(failure, JobFailed)
    assert failure.code == "numerical_error"
    assert same(together.pictures(good), alone("blue"))
    assert same(together.pictures(other), alone("green", seed=8))


def test_a_canceled_job_leaves_within_a_step_and_the_others_get_their_images(
    together: Together, alone: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted, wanted = together.add("blue"), together.add("green")
    left: list[bool] = []
    at_step(monkeypatch, 1, unwanted.signals.cancel.set)
    at_step(monkeypatch, 2, lambda: left.append(unwanted.open))
    together.run()
    assert left == [False]
    assert isinstance(together.failure(unwanted), CancelRequested)
    assert same(together.pictures(wanted), alone("green"))


@pytest.mark.parametrize("scheduler", ["flow-match-euler", "flow-match-heun"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_the_others_get_their_images_also_where_the_call_grows_smaller(
    together: Together,
    alone: Callable[..., list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    loaded: Loaded,
    scheduler: str,
    guidance_scale: float,
) -> None:
    changes = {"scheduler": scheduler, "guidance_scale": guidance_scale, "steps": 4}
    first = together.add("blue", seed=1, **changes)
    unwanted = together.add("red", seed=2, num_images=2, **changes)
    last = together.add("green", seed=9, negative_prompt="red", **changes)
    computed: list[int] = []
    hook = loaded.pipeline.transformer.register_forward_pre_hook(
        lambda module, arguments, named: computed.append(len(named["hidden_states"])), with_kwargs=True
    )
    with monkeypatch.context() as patch:
        at_step(patch, 2, unwanted.signals.cancel.set)
        together.run()
    hook.remove()
    passes = 2 if guidance_scale > 1 else 1
    if scheduler == "flow-match-euler":
        assert [rows // passes for rows in computed] == [4, 4, 2, 2]
    assert same(together.pictures(first), alone("blue", seed=1, **changes))
    assert same(together.pictures(last), alone("green", seed=9, negative_prompt="red", **changes))


def test_a_job_out_of_time_fails_alone(together: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    late, other = together.add(), together.add()
    at_step(monkeypatch, 2, lambda: setattr(late.signals, "deadline", 0.0))
    together.run()
    failure = together.failure(late)
    assert isinstance(failure, JobFailed)
    assert failure.code == "timeout"
    assert len(together.pictures(other)) == 1


def test_a_call_that_everybody_has_left_stops_at_once(together: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [together.add(), together.add()]
    steps: list[int] = []
    at_step(monkeypatch, 1, lambda: [member.signals.cancel.set() for member in members])
    at_step(monkeypatch, 2, lambda: steps.append(2))
    with pytest.raises(NobodyLeft):
        together.run()
    assert steps == []
    assert all(isinstance(together.failure(member), CancelRequested) for member in members)


def test_a_call_whose_own_jobs_have_left_stops_and_the_next_call_makes_the_rest(
    together: Together, monkeypatch: pytest.MonkeyPatch, calls: list[list[int]]
) -> None:
    monkeypatch.setattr(keys, "batch_limit", lambda width, height: 2)
    gone, stays = together.add(num_images=3, seed=10), together.add(seed=20)
    at_step(monkeypatch, 1, gone.signals.cancel.set)
    together.run()
    # The images that the canceled job had left are not made.
    assert calls == [[10, 11], [20]]
    assert len(together.pictures(stays)) == 1


def test_a_job_is_handed_over_as_soon_as_its_images_are_made(
    together: Together, monkeypatch: pytest.MonkeyPatch, calls: list[list[int]]
) -> None:
    monkeypatch.setattr(keys, "batch_limit", lambda width, height: 2)
    small, large = together.add(seed=1), together.add(num_images=4, seed=10)
    done_before: list[int] = []
    real = together._hand_over
    monkeypatch.setattr(
        together, "_hand_over", lambda member, outcome: (done_before.append(len(calls)), real(member, outcome))
    )
    together.run()
    assert calls == [[1, 10], [11, 12], [13]]
    assert done_before == [1, 3]
    assert list(together.outcomes) == [small, large]
    assert [output.seed for output in together.result(large).outputs] == [10, 11, 12, 13]


def test_running_out_of_memory_splits_the_call_and_loses_nobody(
    together: Together, alone: Callable[..., list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, attempts = sampling.sample, []

    def sample(loaded: Loaded, images: Sequence[sampling.Wanted], *rest: Any) -> list[Image.Image | None]:
        attempts.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return real(loaded, images, *rest)

    monkeypatch.setattr(generate, "sample", sample)
    members = [together.add(seed=seed) for seed in range(4)]
    together.run()
    assert attempts == [4, 2, 2]
    assert [together.result(member).result["batch_size"] for member in members] == [2] * 4
    assert [together.result(member).result["batch_position"] for member in members] == [0, 1, 0, 1]
    monkeypatch.setattr(generate, "sample", real)
    for seed, member in enumerate(members):
        assert same(together.pictures(member), alone(seed=seed))


def test_progress_counts_a_jobs_own_images_only(together: Together, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "batch_limit", lambda width, height: 2)
    small, large = together.add(seed=1), together.add(num_images=3, seed=10)
    seen: list[tuple[float, float]] = []

    def look() -> None:
        one, three = small.signals.unwritten, large.signals.unwritten
        seen.append((one.fraction if one else 0.0, three.fraction if three else 0.0))

    at_step(monkeypatch, 3, look)
    together.run()
    # What was reported before the last step of each call: two thirds of a call, then one image and two thirds of two.
    assert seen == [(pytest.approx(2 / 3), pytest.approx(2 / 9)), (1.0, pytest.approx((1 + 2 * 2 / 3) / 3))]
    assert large.signals.unwritten is not None
    assert large.signals.unwritten.fraction == 1.0
