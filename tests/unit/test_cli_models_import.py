"""`calotype models import-stylegan3`: from a file to a folder, by a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from official_pickle import dumps, persistent
from safetensors.torch import load_file

from calotype.cli import main
from worker.families.gan.networks.generator import StyleGAN3Generator
from worker.families.gan.networks.stylegan3_config import stylegan3_t

Run = Callable[..., str]
ACCEPTED = ("--name", "tiny", "--accept-licence", "nvidia-source-code-licence")


class Hostile:
    """Unpickled, it would make a file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._canary}",)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def models(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["calotype", "models", "import-stylegan3", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return models


def test_an_official_file_becomes_a_folder_under_the_models_name(run: Run, tmp_path: Path) -> None:
    generator = StyleGAN3Generator(stylegan3_t(32, z_dim=16, w_dim=16, channel_base=256, channel_max=8))
    settings = {"z_dim": 16, "w_dim": 16, "c_dim": 0, "img_resolution": 32, "img_channels": 3}
    settings |= {"channel_base": 256, "channel_max": 8, "mapping_kwargs": {"num_layers": 2}}
    (tmp_path / "net.pkl").write_bytes(dumps({"G_ema": persistent(generator, "Generator", **settings)}))

    printed = json.loads(run("net.pkl", *ACCEPTED, "--json"))

    assert (printed["name"], printed["folder"], printed["architecture"]) == ("tiny", "tiny", "stylegan3-t")
    assert sorted(path.name for path in (tmp_path / "tiny").iterdir()) == ["generator.safetensors", "model.json"]
    state = load_file(tmp_path / "tiny" / "generator.safetensors")
    assert all(torch.equal(state[name], tensor) for name, tensor in generator.state_dict().items())


def test_a_hostile_file_is_refused_by_name_and_nothing_is_written(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(dumps({"G_ema": Hostile(tmp_path / "canary")}))
    said = run("net.pkl", *ACCEPTED, code=1)
    assert f"net.pkl tries to load {os.system.__module__}.system" in said
    assert "Nothing in the file was run" in said
    assert [path.name for path in tmp_path.iterdir()] == ["net.pkl"]


@pytest.mark.parametrize("given", [(), ("--accept-licence", "yes")])
def test_the_licence_must_be_accepted_by_its_name(given: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(b"x")
    said = run("net.pkl", "--name", "tiny", *given, code=1)
    assert "no commercial use" in said
    assert "--accept-licence nvidia-source-code-licence" in said


def test_without_torch_the_error_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.pkl").write_bytes(b"x")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else there(name))
    said = run("net.pkl", *ACCEPTED, code=1)
    assert "torch is not installed" in said
    assert "pip install 'calotype[worker]'" in said


def test_a_name_that_no_model_can_have_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(b"x")
    assert "can name no model" in run("net.pkl", "--name", "Tiny GAN", *ACCEPTED[2:], code=2)
