"""A GAN among the contenders of a benchmark."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import small_gan
import torch

from calotype import specs
from calotype.datasets import DatasetImage
from calotype.errors import JobFailed
from calotype.gan_description import registry_parameters
from calotype.settings import Settings
from worker.benchmark.contenders import make_contender
from worker.benchmark.floor import count_flops
from worker.benchmark.gan_contender import ClassDraw, GanContender
from worker.benchmark.reference import choose_prompts
from worker.benchmark.result import caveats
from worker.context import JobContext


class Models:
    """A cache with one model in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.loads = folder, 0

    def directory(self, version: object) -> Path:
        return self.folder

    def load(self, key: str, loader: Any) -> Any:
        self.loads += 1
        return loader()[0]

    def clear(self) -> None:
        self.loads = 0


class Archive:
    def __init__(self, labels: list[str | None]) -> None:
        self.items = [SimpleNamespace(label=label) for label in labels]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def make(tmp_path: Path) -> Any:
    description = small_gan.save_small_gan(tmp_path)
    version = SimpleNamespace(
        ref="g@1", key="g@1#0", architecture="stylegan3-t", licence="mine",
        parameters=registry_parameters(description, 0.7),
    )  # fmt: skip

    def contender(labels: list[str | None], **changes: Any) -> GanContender:
        spec = {"family": "gan", "model": "g@1", "name": "ours", **changes}
        request = specs.parse({"kind": "benchmark", "input": {"dataset": "d", "contenders": [spec]}})
        assert isinstance(request, specs.Benchmark)
        ctx = SimpleNamespace(
            spec=request, device=torch.device("cpu"), models=Models(tmp_path), settings=Settings(),
            resolve=lambda ref: version, dataset=lambda ref: Archive(labels),
        )  # fmt: skip
        made = make_contender(cast(JobContext, ctx), request.input.contenders[0])
        assert isinstance(made, GanContender)
        return made

    return contender


def nothing(share: float) -> None:
    assert share == 1.0


def test_an_image_depends_on_its_seed_alone_whatever_the_prompts(make: Any) -> None:
    ours = make(["red", "blue"])
    ours.fetch()
    ours.load()
    together = ours.generate(["a", "b", "c"], [1, 2, 3], nothing)
    alone = [ours.generate(["other words"], [seed], nothing)[0] for seed in (1, 2, 3)]
    for one, other in zip(together, alone, strict=True):
        assert one.size == (16, 16)
        assert int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max()) <= 1
    assert np.asarray(together[0]).tolist() != np.asarray(together[1]).tolist()


def test_it_says_how_its_images_come_about(make: Any) -> None:
    told = make(["red"], truncation_psi=None).describe()
    assert told == {
        "family": "gan", "model": "g@1", "architecture": "stylegan3-t", "truncation_psi": 0.7, "prompts": "ignored",
        "labels": "drawn as often as in the dataset", "width": 16, "height": 16, "dtype": "float32",
        "compiled": False, "licence": "mine",
    }  # fmt: skip
    assert make(["red"], truncation_psi=1.0).describe()["truncation_psi"] == 1.0


def test_truncation_reaches_the_images(make: Any) -> None:
    mean = make(["red"], truncation_psi=0.0)
    mean.load()
    first, second = mean.generate(["", ""], [1, 2], nothing)
    assert np.asarray(first).tolist() == np.asarray(second).tolist()


def test_classes_come_as_often_as_in_the_dataset() -> None:
    draw = ClassDraw.of(["red", "green", "blue"], ["blue", "red", "red", "red", None, "violet"])
    counts = Counter(draw.draw(range(2000)))
    assert set(counts) == {0, 2}
    assert counts[0] / 2000 == pytest.approx(0.75, abs=0.05)
    assert (draw.draw([7, 8]) or [])[1:] == draw.draw([8])


def test_a_dataset_without_the_models_labels_says_so_and_all_come_evenly() -> None:
    draw = ClassDraw.of(["red", "green"], [None, "violet"])
    assert "none of the model's labels" in str(draw.rule)
    assert Counter(draw.draw(range(1000)))[0] == pytest.approx(500, abs=80)


def test_a_model_without_classes_is_given_none() -> None:
    draw = ClassDraw.of(None, ["red"])
    assert (draw.rule, draw.draw([1])) == (None, None)


def test_what_is_not_finite_is_no_image(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = make(["red"])
    ours.load()
    broken = torch.full((1, 3, 16, 16), torch.nan)
    monkeypatch.setattr(ours._loaded.sampler, "images", lambda points: broken)
    with pytest.raises(JobFailed) as failed:
        ours.generate([""], [1], nothing)
    assert failed.value.code == "numerical_error"


def test_its_arithmetic_is_counted(make: Any) -> None:
    ours = make(["red"])
    ours.load()
    assert count_flops(lambda: ours.generate([""], [1], nothing)) > 100_000


def test_only_contenders_that_read_prompts_need_a_dataset_with_words() -> None:
    items = [DatasetImage(file_name=f"{n}.png", text=None, label=None, width=8, height=8, sha256="") for n in range(3)]
    with pytest.raises(JobFailed, match="dataset has neither"):
        choose_prompts(items, 4, 0)
    chosen = choose_prompts(items, 4, 0, needed=False)
    assert [prompt.text for prompt in chosen] == [""] * 4
    assert {prompt.file_name for prompt in chosen} == {"0.png", "1.png", "2.png"}


def test_it_has_to_be_loaded_and_lets_go(make: Any) -> None:
    ours = make(["red"])
    with pytest.raises(RuntimeError):
        ours.generate([""], [1], nothing)
    ours.load()
    ours.unload()
    with pytest.raises(RuntimeError):
        ours.generate([""], [1], nothing)


def test_the_report_warns_that_prompts_mean_nothing_to_it() -> None:
    entry: dict[str, Any] = {
        "name": "ours", "status": "succeeded", "prompts": "ignored", "labels": "drawn as often as in the dataset",
        "latency": [], "fd": None, "device_peak": None,
    }  # fmt: skip
    (said,) = caveats([entry], 48)
    assert said.startswith(
        "ours reads no prompts: what it shows is up to its seeds, and its classes are drawn as often"
    )
