"""`calotype models register`: what it knows to be wrong before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calotype.cli import main, models_register
from calotype.client import Client

NVIDIA = "nvidia-source-code-licence"
DESCRIPTION: dict[str, Any] = {
    "architecture": "stylegan3-t",
    "generator": {"resolution": 64, "image_channels": 3, "num_layers": 14, "num_classes": 0},
    "licence": {"id": NVIDIA, "commercial_use": False, "note": "research only"},
}
Run = Callable[..., str]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(description, **files)``: a folder with these files beside `model.json`."""

    def make(description: dict[str, Any] | None = DESCRIPTION, *others: str) -> Path:
        folder = tmp_path / "gan"
        folder.mkdir()
        if description is not None:
            (folder / "model.json").write_text(json.dumps(description))
        for name in others or ("generator.safetensors",):
            (folder / name).write_bytes(b"weights")
        return folder

    return make


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], list[str]]]:
    """What would have been registered: the body, and the names of the files."""
    registered: list[tuple[dict[str, Any], list[str]]] = []

    class Silent(Client):
        def register_model(self, model: Any, files: Any = ()) -> dict[str, Any]:
            registered.append((model, [path.name for path in files]))
            return {"ref": f"{model['name']}@1", **model}

    monkeypatch.setattr(models_register, "connect", lambda url, key: Silent("http://127.0.0.1:1", None))
    return registered


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sent: list[Any]) -> Run:
    def register(folder: Path, *options: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["calotype", "models", "register", str(folder), "--name", "mine", *options])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed.err
        assert bool(sent) == (code == 0)
        return " ".join((printed.out if code == 0 else printed.err).split())

    return register


def test_the_folder_says_what_it_is_and_its_description_is_sent_last(
    run: Run, write: Write, sent: list[tuple[dict[str, Any], list[str]]]
) -> None:
    folder = write(DESCRIPTION, "generator.safetensors", "discriminator.safetensors")
    assert run(folder, "--accept-licence", NVIDIA) == f"mine@1 (stylegan3-t, {NVIDIA})"
    ((body, files),) = sent
    assert (body["architecture"], body["licence"], body["accept_licence"]) == ("stylegan3-t", NVIDIA, NVIDIA)
    assert files == ["discriminator.safetensors", "generator.safetensors", "model.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), f"--accept-licence: the weights are under {NVIDIA}, which allows no commercial use, and it was not"),
        (("--accept-licence", "yes"), "'yes' is another one"),
        (("--licence", "MIT", "--accept-licence", "MIT"), f"--licence: the folder's model.json says {NVIDIA}"),
    ],
)
def test_a_licence_without_commercial_use_is_accepted_before_anything_is_sent(
    run: Run, write: Write, options: tuple[str, ...], message: str
) -> None:
    assert message in run(write(), *options, code=1)


def test_weights_of_ones_own_need_a_licence(
    run: Run, write: Write, sent: list[tuple[dict[str, Any], list[str]]]
) -> None:
    folder = write({**DESCRIPTION, "licence": None})
    assert "names no licence" in run(folder, code=1)
    run(folder, "--licence", "proprietary")
    assert sent[0][0]["licence"] == "proprietary"


@pytest.mark.parametrize(
    ("description", "files", "message"),
    [
        (None, (), "holds no model.json"),
        (DESCRIPTION, ("discriminator.safetensors",), "holds no generator.safetensors"),
        (DESCRIPTION, ("generator.safetensors", "network.pkl"), "network.pkl is no part of a GAN"),
        ({**DESCRIPTION, "labels": ["red"]}, (), "names 1 labels for a generator of 0 classes"),
        ({**DESCRIPTION, "note": "x" * (1 << 20)}, (), "has more than 1,048,576 bytes"),
    ],
    ids=["no description", "no weights", "a pickle", "labels", "a long description"],
)
def test_a_folder_that_is_no_gan_is_refused_with_the_reason(
    run: Run, write: Write, description: dict[str, Any] | None, files: tuple[str, ...], message: str
) -> None:
    assert message in run(write(description, *files), code=1)


def test_what_is_no_folder_or_no_name_is_a_usage_error(run: Run, write: Write, tmp_path: Path) -> None:
    assert "does not exist" in run(tmp_path / "nowhere", code=2)
    assert "can name no model" in run(write(), "--name", "No Name", code=2)
