"""A GAN from its folder to images, through the whole stack and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import small_gan
from PIL import Image

from calotype.artifacts import ObjectStore
from calotype.client import Client, ConnectionFailedError

if TYPE_CHECKING:
    from tests.conftest import Ended, RunningUp

Cli = Callable[..., "Ended"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small GAN on its owner's disk."""
    small_gan.save_small_gan(tmp_path / "gan")
    return tmp_path / "gan"


@pytest.fixture
def registered(cli: Cli, folder: Path) -> str:
    """The name of a small GAN that its owner has registered from the command line."""
    options = ("--name", "small-gan", "--licence", "Apache-2.0", "--truncation-psi", "0.7", "--json")
    ended = cli("models", "register", str(folder), *options)
    assert ended.code == 0, ended.err
    assert ended.json["source"]["type"] == "upload"
    return "small-gan"


@pytest.fixture
def uploads(stack: RunningUp) -> Callable[[], set[str]]:
    """The keys of what was uploaded for models so far."""
    store = ObjectStore(stack.settings())
    return lambda: {stored.key for stored in store.list_keys("tenants/") if "/model-uploads/" in stored.key}


def test_a_registered_gan_makes_images_and_an_animation(cli: Cli, registered: str, tmp_path: Path) -> None:
    images = tmp_path / "images"
    ended = cli(
        *("submit", "generate", "--family", "gan", "--model", registered, "-n", "2", "--seed", "5"),
        *("--label", "red", "--interpolate", "4", "--output", str(images), "--json"),
    )
    assert ended.code == 0, ended.err
    assert [one["name"] for one in ended.json["artifacts"]] == ["image-000.png", "image-001.png", "interpolation.webp"]
    assert ended.json["result"]["labels"] == ["red", "red"]
    assert ended.json["result"]["truncation_psi"] == 0.7
    first, second = (np.asarray(Image.open(images / f"image-00{number}.png")) for number in (0, 1))
    assert first.shape == (16, 16, 3)
    assert not np.array_equal(first, second)
    with Image.open(images / "interpolation.webp") as film:
        assert getattr(film, "n_frames", 1) == 8


def test_a_wrong_label_is_told_on_the_command_line_with_those_there_are(cli: Cli, registered: str) -> None:
    ended = cli("submit", "generate", "--family", "gan", "--model", registered, "--label", "pink")
    assert ended.code == 1
    assert "red, green, blue" in " ".join(ended.err.split())


def test_an_upload_that_breaks_off_leaves_nothing(
    stack: RunningUp, folder: Path, uploads: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights arrive, then the connection is lost."""
    before = uploads()
    body = {"name": "lost-gan", "family": "gan", "architecture": "stylegan3-t", "licence": "Apache-2.0"}
    files = [folder / "generator.safetensors", folder / "model.json"]
    with Client(stack.url, stack.api_key) as client:
        send = client._plain.put

        def put(url: str, **options: Any) -> httpx.Response:
            if "model.json" in url:
                assert len(uploads() - before) == 1
                raise httpx.WriteError("connection reset")
            return send(url, **options)

        monkeypatch.setattr(client._plain, "put", put)
        with pytest.raises(ConnectionFailedError, match=r"model\.json could not be put"):
            client.register_model(body, files)
    assert uploads() == before


def test_a_registration_that_is_refused_leaves_nothing(cli: Cli, folder: Path, uploads: Callable[[], set[str]]) -> None:
    before = uploads()
    ended = cli("models", "register", str(folder), "--name", "starter-diffusion", "--licence", "MIT")
    assert ended.code == 1
    assert "is a shared model" in " ".join(ended.err.split())
    assert uploads() == before
