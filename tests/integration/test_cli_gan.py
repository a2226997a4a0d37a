"""A GAN from its folder to images, through the whole stack and the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest
import small_gan
from PIL import Image

from calotype.artifacts import ObjectStore
from calotype.database import connect_engine, transaction
from calotype.tenants import authenticate

if TYPE_CHECKING:
    from tests.conftest import Ended, RunningUp

Cli = Callable[..., "Ended"]


@pytest.fixture
def registered(stack: RunningUp, tmp_path: Path) -> str:
    """The name of a small GAN that its owner has put into the store and registered over HTTP."""
    settings = stack.settings()
    engine = connect_engine(settings, application_name="test")
    with transaction(engine) as conn:
        owner = authenticate(conn, stack.api_key).tenant_id
    engine.dispose()
    small_gan.save_small_gan(tmp_path / "gan")
    prefix, store = f"tenants/{owner}/imports/small/", ObjectStore(settings)
    for path in (tmp_path / "gan").iterdir():
        store.put_file(prefix + path.name, path)
    body = {
        "name": "small-gan", "family": "gan", "architecture": "stylegan3-t", "licence": "Apache-2.0",
        "source": {"type": "s3", "prefix": prefix}, "default_truncation_psi": 0.7,
    }  # fmt: skip
    key = {"Authorization": f"Bearer {stack.api_key}"}
    answer = httpx.post(f"{stack.url}/v1/models", json=body, headers=key, timeout=60)
    assert answer.status_code == 201, answer.text
    return "small-gan"


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
