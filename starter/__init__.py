"""Starter assets: small models and datasets that ship with Calotype, so that a first image needs no download.

This module names them and says where they are; it imports nothing beyond the standard library. `starter/recipe` holds
the scripts that made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

_ASSETS: Final = Path(__file__).resolve().parent / "assets"

DIFFUSION_MODEL: Final = "starter-diffusion"
GAN_MODEL: Final = "starter-gan"
TRAIN_DATASET: Final = "starter-logos"
HELDOUT_DATASET: Final = "starter-logos-heldout"
BRAND_DATASET: Final = "starter-brand"

#: Text lengths of the pipeline: both CLIP encoders read this many tokens ...
CLIP_TOKENS: Final = 16
#: ... and the T5, there for form's sake, this many. Pass it as `max_sequence_length`: the model knows no other.
T5_TOKENS: Final = 1

#: What the diffusion model was made for and is best at.
DIFFUSION_SIZE: Final = 64
DIFFUSION_STEPS: Final = 20
DIFFUSION_GUIDANCE: Final = 3.0

#: Pixels a side of what the GAN makes; it knows no other size.
GAN_SIZE: Final = 64
#: What the GAN can be asked for: the colour that a logo shows most of (`starter/colours.py`).
GAN_LABELS: Final = ("black", "blue", "brown", "gray", "green", "orange", "pink", "purple", "red", "teal", "yellow")


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the registry records about a starter asset."""

    name: str
    description: str
    #: SPDX expression of the files as they ship
    licence: str
    #: what else a user must know about rights
    notice: str
    #: where the files came from
    source: str
    #: in the words that jobs are checked against
    parameters: Mapping[str, Any]


_MARKS: Final = "Names and marks in the logos remain the property of their owners."
_LOGOS: Final = "npm @iconify-json/logos 1.2.19 and simple-icons 16.37.0, rendered by starter/recipe/dataset.py"

DIFFUSION: Final = Metadata(
    name=DIFFUSION_MODEL,
    description="Text to 64 x 64 logos: a small Stable Diffusion 3 pipeline, trained on starter-logos",
    licence="Apache-2.0",
    notice=f"Trained on brand logos; what it draws may resemble them. {_MARKS}",
    source="trained by starter/recipe on starter-logos",
    parameters=MappingProxyType(
        {
            "default_width": DIFFUSION_SIZE,
            "default_height": DIFFUSION_SIZE,
            "default_steps": DIFFUSION_STEPS,
            # More gain nothing with a model of this size.
            "max_steps": 200,
            "default_guidance_scale": DIFFUSION_GUIDANCE,
            "min_size": 32,
            "max_size": 128,
            "size_multiple": 8,
            "max_text_tokens": CLIP_TOKENS + T5_TOKENS,
        }
    ),
)

GAN: Final = Metadata(
    name=GAN_MODEL,
    description="64 x 64 logos of a colour that is asked for: a small R3GAN with a palette, trained on starter-logos",
    licence="Apache-2.0",
    notice=f"Trained on brand logos; what it draws may resemble them. {_MARKS}",
    source="trained by starter/recipe on starter-logos",
    parameters=MappingProxyType(
        {
            "default_width": GAN_SIZE,
            "default_height": GAN_SIZE,
            "min_size": GAN_SIZE,
            "max_size": GAN_SIZE,
            "size_multiple": GAN_SIZE,
            "resolution": GAN_SIZE,
            "labels": list(GAN_LABELS),
            # Its architecture has no styles, and so no truncation.
            "style_layers": 0,
            "default_truncation_psi": 1.0,
        }
    ),
)


def _dataset(name: str, description: str) -> Metadata:
    return Metadata(
        name=name,
        description=description,
        licence="CC0-1.0",
        notice=_MARKS,
        source=_LOGOS,
        parameters=MappingProxyType({"size": DIFFUSION_SIZE}),
    )


DATASETS: Final = (
    _dataset(TRAIN_DATASET, "3,400 brand logos on white with captions: what the starter models were trained on"),
    _dataset(HELDOUT_DATASET, "922 logos of other brands: what the starter models are measured against"),
    _dataset(BRAND_DATASET, "60 training logos of one vendor in one style, for trying a fine-tune"),
)


def diffusion_dir() -> Path:
    """The text-to-image pipeline, a diffusers folder in the Stable Diffusion 3 architecture."""
    return _ASSETS / "diffusion"


def gan_dir() -> Path:
    """The GAN, as a training job stores one: `model.json` and the weights of its networks."""
    return _ASSETS / "gan"


def train_dataset() -> Path:
    """Zip of captioned 64 x 64 brand logos: what the starter models were trained on."""
    return _ASSETS / "starter-logos.zip"


def heldout_dataset() -> Path:
    """Zip of logos of other brands, never trained on: what the starter models are measured against."""
    return _ASSETS / "starter-logos-heldout.zip"


def brand_dataset() -> Path:
    """Zip of a few dozen training logos of one vendor in one visible style: for trying a fine-tune."""
    return _ASSETS / "starter-brand.zip"
