"""A registered GAN in a worker's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import small_gan
import torch

from calotype.errors import JobFailed
from calotype.settings import Settings
from worker.context import JobContext
from worker.families.gan import load as loading
from worker.families.gan.load import Loaded, inference_dtype, load


class Models:
    """A cache on disk and in memory that holds whatever is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: dict[str, Any] = {}
        self.bytes = 0

    def directory(self, version: object) -> Path:
        return self.folder

    def load(self, key: str, loader: Callable[[], tuple[Any, int]]) -> Any:
        if key not in self.kept:
            self.kept[key], self.bytes = loader()
        return self.kept[key]


VERSION: Any = SimpleNamespace(ref="g@1", key="g@1#0")


def context(folder: Path, compile_gans: str = "no") -> JobContext:
    settings = dataclasses.replace(Settings(), compile_gans=compile_gans)
    return cast(JobContext, SimpleNamespace(device=torch.device("cpu"), settings=settings, models=Models(folder)))


def test_a_generator_is_loaded_once_and_says_how_much_memory_it_takes(tmp_path: Path) -> None:
    small_gan.save_small_gan(tmp_path)
    ctx = context(tmp_path)
    loaded = load(ctx, VERSION)
    assert load(ctx, VERSION) is loaded
    assert cast(Models, ctx.models).bytes == loaded.stored.bytes > 0
    assert (loaded.dtype, loaded.compiled, loaded.stored.resolution) == (torch.float32, False, small_gan.RESOLUTION)


def test_the_operator_says_whether_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gan.save_small_gan(tmp_path)
    asked: list[bool] = []
    real = loading.make_sampler

    def make(generator: Any, dtype: Any, *, compiled: bool) -> Any:
        asked.append(compiled)
        return real(generator, dtype)

    monkeypatch.setattr(loading, "make_sampler", make)
    told = [load(context(tmp_path, setting), VERSION).compiled for setting in ("yes", "no")]
    assert asked == told == [True, False]


def test_what_cannot_be_read_names_the_version_and_the_file(tmp_path: Path) -> None:
    with pytest.raises(JobFailed) as failed:
        load(context(tmp_path), VERSION)
    assert failed.value.code == "model_unavailable"
    assert failed.value.detail == "g@1 cannot be read: model.json cannot be read: No such file or directory."


def test_gpus_compute_in_bf16_and_processors_exactly() -> None:
    assert inference_dtype(torch.device("cuda")) == torch.bfloat16
    assert inference_dtype(torch.device("cpu")) == torch.float32


def test_exact_computing_asks_for_no_other_dtype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_gan.save_small_gan(tmp_path)
    asked: list[torch.dtype | None] = []
    monkeypatch.setattr(loading, "make_sampler", lambda generator, dtype, *, compiled: asked.append(dtype))
    assert isinstance(load(context(tmp_path), VERSION), Loaded)
    monkeypatch.setattr(loading, "inference_dtype", lambda device: torch.bfloat16)
    load(context(tmp_path), VERSION)
    assert asked == [None, torch.bfloat16]
