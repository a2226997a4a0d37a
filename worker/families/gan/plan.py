"""What a generate job wants of a generator: one point for each of its images and frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from calotype.specs import GanGenerateInput, Interpolation
from worker.families.gan.load import Loaded, class_number
from worker.families.gan.sampling import Sampler, classes_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The points `[M, …]` of one job: its images, then the frames between them that are not images themselves."""

    points: Tensor
    #: Of the images.
    seeds: Sequence[int]
    #: Of the images, by name; None for an unconditional generator.
    labels: list[str] | None
    #: Which point each frame of the animation shows, in order.
    frames: Sequence[int] = ()

    @property
    def num_images(self) -> int:
        return len(self.seeds)

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    def frames_of(self, made: Sequence[T]) -> list[T]:
        """The animation, from what was made of the points."""
        return [made[number] for number in self.frames]


def plan(loaded: Loaded, request: GanGenerateInput) -> Plan:
    """Raises JobFailed `bad_input` for a label that the model does not have."""
    if request.seed is None or request.truncation_psi is None:
        raise ValueError("the spec is not complete: submission fills in seed and truncation_psi")
    seeds = range(request.seed, request.seed + request.num_images)
    classes = classes_of(seeds, loaded.stored.generator, class_number(loaded, request.label))
    names = loaded.stored.labels
    points = loaded.sampler.points(seeds, classes, request.truncation_psi)
    if request.style_mixing is not None:
        points = _mixed(loaded.sampler, points, classes, request)
    labels = None if classes is None or names is None else [names[number] for number in classes]
    if request.interpolation is None:
        return Plan(points=points, seeds=seeds, labels=labels)
    between, frames = _animated(loaded.sampler, points, request.interpolation)
    return Plan(points=torch.cat([points, *between]), seeds=seeds, labels=labels, frames=frames)


def _mixed(sampler: Sampler, points: Tensor, classes: Sequence[int] | None, request: GanGenerateInput) -> Tensor:
    """The lending image is of each image's own class: a style is lent, not what is shown."""
    mixing = request.style_mixing
    if mixing is None or mixing.first_layer is None or mixing.last_layer is None or request.truncation_psi is None:
        raise ValueError("the spec is not complete: submission fills in the layers of style_mixing")
    styles = sampler.points([mixing.seed] * len(points), classes, request.truncation_psi)
    return sampler.mix(points, styles, mixing.first_layer, mixing.last_layer)


def _animated(sampler: Sampler, points: Tensor, wish: Interpolation) -> tuple[list[Tensor], list[int]]:
    """The points between the images, each `[1, …]`, and which point each frame shows."""
    count = len(points)
    between: list[Tensor] = []
    frames: list[int] = []
    for start in range(count if wish.loop else count - 1):
        frames.append(start)
        for step in range(1, wish.frames):
            point = sampler.between(points[start], points[(start + 1) % count], step / wish.frames)
            frames.append(count + len(between))
            between.append(point[None])
    return between, frames if wish.loop else [*frames, count - 1]
