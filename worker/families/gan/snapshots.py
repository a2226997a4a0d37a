"""What a training keeps of its way: at each snapshot a grid of images and a Fréchet distance, and of all snapshots the
networks of the best one.

The folder, which checkpoints copy::

    step-0000400.png    the grid of that step
    best/               the networks of the best snapshot, as safetensors
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from worker.benchmark.sheets import thumbnail

#: Rows of a grid, and its columns where no classes give their number.
ROWS: Final = 4
COLUMNS: Final = 8
#: Pixels of a cell's edge at most, and between cells.
_CELL: Final = 256
_GAP: Final = 2


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One look at the kept generator."""

    step: int
    #: Real images shown until then, in thousands.
    kimg: float
    #: Of the kept generator's images to the real sample.
    frechet: float
    #: Whether the watch for mode collapse had a suspicion then.
    suspicious: bool

    @property
    def rank(self) -> tuple[bool, float, int]:
        """Smaller is better: one that is not suspected of a collapse before any that is."""
        return self.suspicious, self.frechet, self.step


class Snapshots:
    """All snapshots of a training, and the networks of the best."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: list[Snapshot] = []

    @property
    def best(self) -> Snapshot | None:
        return min(self.taken, key=lambda one: one.rank, default=None)

    @property
    def last_step(self) -> int:
        """0 before the first."""
        return self.taken[-1].step if self.taken else 0

    def add(self, snapshot: Snapshot, grid: Image.Image, networks: Mapping[str, nn.Module]) -> Path:
        """Keep a snapshot, and the networks if none was better; returns where the grid is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _name(snapshot.step)
        grid.save(path, "PNG")
        self.taken.append(snapshot)
        if self.best is snapshot:
            _save(networks, self.folder / "best")
        return path

    def restore_best(self, networks: Mapping[str, nn.Module]) -> None:
        """Put the best snapshot's weights into the networks. Raises FileNotFoundError where there is none."""
        for name, network in networks.items():
            network.load_state_dict(load_file(self.folder / "best" / f"{name}.safetensors"))

    def grids(self) -> list[Path]:
        """Of all snapshots, oldest first."""
        return [self.folder / _name(one.step) for one in self.taken]

    def state_dict(self) -> list[dict[str, Any]]:
        """What is not in the folder, JSON-able."""
        return [asdict(one) for one in self.taken]

    def load_state_dict(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.taken = [Snapshot(**row) for row in rows]


def grid_of(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size in rows, on grey."""
    cells = [thumbnail(one, _CELL) if one.width > _CELL else one for one in pictures]
    width, height = cells[0].width + _GAP, cells[0].height + _GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "#808080")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (_GAP + column * width, _GAP + row * height))
    return sheet


def _name(step: int) -> str:
    return f"step-{step:07d}.png"


def _save(networks: Mapping[str, nn.Module], folder: Path) -> None:
    """Replace the folder as a whole."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for name, network in networks.items():
        # Filters may be shared between layers, which safetensors refuses.
        state = {key: tensor.detach().clone().contiguous() for key, tensor in network.state_dict().items()}
        save_file(state, fresh / f"{name}.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
