"""A built wheel has all that the product needs, away from any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "calotype", "migrations", "starter", "worker")
LIMIT = 40 << 20

PROBE = """
import sys, pathlib
import api.app, calotype.cli, calotype.local.stack, migrations, starter, worker.reconciler
assert "torch" not in sys.modules
site = pathlib.Path(sys.argv[1]).resolve()
for module in (api, calotype, migrations, starter, worker):
    assert site in pathlib.Path(module.__file__).resolve().parents, module.__file__
for asset in (starter.diffusion_dir() / "model_index.json", starter.train_dataset(), starter.heldout_dataset(),
              starter.brand_dataset(), starter.gan_dir() / "model.json"):
    assert asset.is_file(), asset
from calotype.database import _alembic
from alembic.script import ScriptDirectory
assert ScriptDirectory.from_config(_alembic()).get_current_head()
from api.app import create_app
print("complete")
"""


def _tracked(*paths: str) -> list[str]:
    """The files of the checkout that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the checkout's own files, in the environment at hand: no download, nothing left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in _tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (built,) = folder.glob("calotype-*.whl")
    return built


def test_the_wheel_holds_every_file_of_every_package(wheel: Path) -> None:
    listed = _tracked(*PACKAGES)
    with zipfile.ZipFile(wheel) as archive:
        missing = set(listed) - set(archive.namelist())
    assert listed and not missing


def test_the_starter_assets_stay_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assets = [entry for entry in archive.infolist() if entry.filename.startswith("starter/assets/")]
    assert assets and sum(entry.file_size for entry in assets) <= LIMIT


def test_an_installed_wheel_runs_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, timeout=110)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CALOTYPE_")}
    environment["PYTHONPATH"] = str(site)
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(site)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "complete", done.stderr[-2000:]
    assert (site / "bin" / "calotype").is_file()
