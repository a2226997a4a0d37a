"""Jobs of the GAN family that make images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from calotype.specs.common import GenerateRequest, ModelRef, Seed, Strict

#: A class of a class-conditional model, by its name.
LabelName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
#: A style layer, from the coarsest.
StyleLayer = Annotated[int, Field(ge=0, le=101)]
#: ψ of truncation.
TruncationPsi = Annotated[float, Field(ge=0.0, le=2.0)]

#: Frames of one animation.
MAX_FRAMES = 1000


class StyleMixing(Strict):
    """Some layers take the style of another image: coarse ones carry pose and shape, fine ones colours."""

    seed: Seed
    """Of the image that lends its style."""
    first_layer: StyleLayer | None = None
    """The coarsest layer that takes it; when null, the first of the finer half."""
    last_layer: StyleLayer | None = None
    """The finest layer that takes it; when null, the model's finest."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.first_layer is not None and self.last_layer is not None and self.first_layer > self.last_layer:
            raise ValueError(f"first_layer ({self.first_layer}) comes after last_layer ({self.last_layer})")
        return self


class Interpolation(Strict):
    """An animation that goes from each image to the next, `interpolation.webp` beside the images."""

    frames: int = Field(default=24, ge=1, le=240)
    """Frames from one image to the next."""
    frames_per_second: int = Field(default=24, ge=1, le=60)
    loop: bool = True
    """Go back from the last image to the first, and begin again; else it ends at the last."""


class GanGenerateInput(Strict):
    """Latents to images."""

    num_images: int = Field(default=1, ge=1, le=64)
    seed: Seed | None = None
    """Image number i is made with seed + i; drawn when null."""
    truncation_psi: TruncationPsi | None = None
    """1 is the model's whole variety, less is more typical images, 0 its mean; the model's own when null. Only for
    architectures with styles."""
    label: LabelName | None = None
    """The class to show, by its name. When null each image's class is drawn by its seed."""
    style_mixing: StyleMixing | None = None
    """Only for architectures with styles."""
    interpolation: Interpolation | None = None
    """Needs two images or more."""

    @model_validator(mode="after")
    def _an_interpolation_has_ends(self) -> Self:
        if self.interpolation is not None and self.num_images < 2:
            raise ValueError("interpolation goes from image to image: set num_images to 2 or more")
        if self.num_frames > MAX_FRAMES:
            raise ValueError(
                f"the interpolation has {self.num_frames} frames, and {MAX_FRAMES} at most are made; "
                "ask for fewer images or fewer frames"
            )
        return self

    @property
    def num_frames(self) -> int:
        """Frames of the animation; 0 without one."""
        if self.interpolation is None:
            return 0
        return self._legs * self.interpolation.frames + (0 if self.interpolation.loop else 1)

    @property
    def num_made(self) -> int:
        """What the network makes: the images, and the frames that are none of them."""
        return self.num_images + (0 if self.interpolation is None else self._legs * (self.interpolation.frames - 1))

    @property
    def _legs(self) -> int:
        """Ways from an image to the next."""
        return self.num_images if self.interpolation is not None and self.interpolation.loop else self.num_images - 1


class GanGenerate(GenerateRequest):
    """Makes images with a GAN, each in one pass of the network."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "generate",
                    "family": "gan",
                    "model": "starter-gan",
                    "input": {"num_images": 4, "seed": 7, "label": "blue"},
                }
            ]
        }
    )

    kind: Literal["generate"]
    family: Literal["gan"]
    model: ModelRef
    """`name`, or `name@version`; the latest version when none is given."""
    input: GanGenerateInput
