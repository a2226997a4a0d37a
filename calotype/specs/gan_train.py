"""Training a GAN."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from calotype.gan_description import Architecture
from calotype.specs.common import DatasetRef, ModelName, ModelRef, Request, Seed, Strict

#: How often the discriminator is shown images that were moved, scaled or recoloured: found by feedback, never, or by a
#: fixed course.
Augment = Literal["ada", "none", "fixed"]
#: Transforms that augmentation can make; see `GanTrainInput.augmentations`.
Augmentation = Literal[
    "x_flip",
    "rotate90",
    "integer_shift",
    "scale",
    "rotate",
    "anisotropic_scale",
    "fractional_shift",
    "brightness",
    "contrast",
    "luma_flip",
    "hue",
    "saturation",
]
#: How an image that is not a square of the resolution becomes one.
Resize = Literal["pad", "crop", "stretch"]

LEAST_RESOLUTION = 16
MOST_RESOLUTION = 2048
#: Flips, turns and other hues make another logo of a logo.
DEFAULT_AUGMENTATIONS: tuple[Augmentation, ...] = (
    "integer_shift",
    "scale",
    "anisotropic_scale",
    "fractional_shift",
    "brightness",
    "contrast",
    "saturation",
)


class ModeCollapse(Strict):
    """The watch for a generator that makes the same few images again and again."""

    every_steps: int = Field(default=100, ge=1, le=1_000_000)
    """Training steps between two looks."""
    action: Literal["warn", "stop", "raise_augmentation"] = "warn"
    """`warn` says so and goes on, `stop` ends the training with the best snapshot from before, `raise_augmentation`
    augments more often, since a discriminator that knows the images by heart is a usual cause."""
    patience: int = Field(default=3, ge=1, le=1000)
    """Looks in a row that must find a collapse before the action."""
    warmup_steps: int = Field(default=1000, ge=0, le=10_000_000)
    """Until then a generator that never was varied does not count: a young one makes noise, which is all alike."""
    samples: int = Field(default=128, ge=16, le=4096)
    """Images a look compares with as many real ones; fewer where the dataset is smaller."""


class GanTrainInput(Strict):
    """From images to a generator. What is null is filled in by the architecture, or by `model` where there is one."""

    dataset: DatasetRef
    """The id or the name of the dataset."""
    architecture: Architecture | None = None
    """That of `model`; `stylegan3-t` without one. Only the StyleGAN3 ones are alias-free, `r3gan` is the fastest."""
    resolution: int | None = Field(default=None, ge=LEAST_RESOLUTION, le=MOST_RESOLUTION)
    """Pixels a side, a power of two; that of `model` when null, and needed without one."""
    kimg: float = Field(gt=0, le=1_000_000)
    """How many thousand real images the discriminator is shown."""
    batch_size: int = Field(default=32, ge=1, le=4096)
    """Images of one step; split into micro-batches when memory runs out."""
    conditional: bool | None = None
    """Learn the dataset's labels as classes, to be asked for by label. When null as `model`, else no."""
    resize: Resize | None = None
    """How images become squares: `pad` with the border's colour, `crop` the middle, `stretch`. Needed unless all are
    squares of one size."""
    r1_gamma: float | None = Field(default=None, ge=0, le=100_000)
    """Strength of the gradient penalty; grows with the resolution. `r3gan` ends at a tenth of it. The first to tune."""
    r1_every: int | None = Field(default=None, ge=1, le=1000)
    """Steps between two penalties; 16, and 1 for `r3gan`."""
    generator_lr: float | None = Field(default=None, gt=0, le=1)
    """Learning rate; 0.0025, and 2e-4 for `r3gan`, which ends at a quarter of it."""
    discriminator_lr: float | None = Field(default=None, gt=0, le=1)
    """Learning rate; 0.002, and 2e-4 for `r3gan`, which ends at a quarter of it."""
    ramp_kimg: float | None = Field(default=None, ge=0, le=1_000_000)
    """Over how many thousand images `fixed` augmentation and, for `r3gan`, rates and penalty move from where they begin
    to where they end; a fifth of `kimg` when null."""
    ema_kimg: float | None = Field(default=None, gt=0, le=100_000)
    """Half-life of the running mean of the generator, which is what is kept; 10 · batch_size/32 when null."""
    augment: Augment | None = None
    """`ada` by feedback, `fixed` by a course from 0 to `augment_p`, `none`; `ada` when null, `fixed` for `r3gan`."""
    augment_p: float | None = Field(default=None, ge=0, le=1)
    """Where `fixed` ends, and from where `ada` starts; 0.3 and 0 when null."""
    augmentations: tuple[Augmentation, ...] = Field(
        default=DEFAULT_AUGMENTATIONS, min_length=1, max_length=12, strict=False
    )
    """Which transforms augmentation makes. Flips, turns and other hues change what a logo means: they are left out."""
    mixed_precision: Literal["no", "bf16"] = "no"
    channel_base: int | None = Field(default=None, ge=64, le=1_048_576)
    """The width of the networks: a layer of N pixels a side has channel_base/N feature maps, at most `channel_max`.
    The defaults are the papers' and for a GPU; on a CPU take 2048 and 64."""
    channel_max: int | None = Field(default=None, ge=4, le=8192)
    layers: int | None = Field(default=None, ge=1, le=64)
    """StyleGAN3: layers of the generator, 14 when null. `r3gan`: residual blocks a resolution, 2 when null."""
    mode_collapse: ModeCollapse | None = Field(default_factory=ModeCollapse)
    """The watch for mode collapse; null turns it off."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; what a lost worker can cost at most."""
    snapshot_every: int | None = Field(default=None, ge=1)
    """Steps between snapshots; an eighth of the training when null. Each is a grid of images and a Fréchet distance;
    the generator of the smallest distance becomes the model."""
    frechet_samples: int = Field(default=1000, ge=2, le=50_000)
    """Images a side behind each Fréchet distance; fewer real ones where the dataset is smaller."""
    seed: Seed | None = None
    output_model: ModelName
    """The result is registered as the next version of this model of yours."""

    @field_validator("resolution")
    @classmethod
    def _is_a_power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            below = 1 << (value.bit_length() - 1)
            raise ValueError(f"must be a power of two; nearest: {below} or {2 * below}")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.augment == "none" and self.augment_p:
            raise ValueError("augment_p has no use where augment is none; leave one of them out")
        if len(set(self.augmentations)) != len(self.augmentations):
            raise ValueError("an augmentation is listed twice")
        return self


class GanTrain(Request):
    """Trains a GAN on a dataset, from the beginning or from a model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "train",
                    "family": "gan",
                    "input": {
                        "dataset": "starter-logos",
                        "architecture": "stylegan3-t",
                        "resolution": 64,
                        "kimg": 1,
                        "batch_size": 16,
                        "channel_base": 2048,
                        "channel_max": 64,
                        "resize": "pad",
                        "augment": "ada",
                        "mode_collapse": {"every_steps": 16, "action": "stop"},
                        "snapshot_every": 16,
                        "frechet_samples": 128,
                        "output_model": "my-gan",
                    },
                }
            ]
        }
    )

    kind: Literal["train"]
    family: Literal["gan"]
    model: ModelRef | None = None
    """The model that training starts from; from random weights when null."""
    input: GanTrainInput
