"""Classes of diffusers, which is not typed: named once as Any, so that the recipe can be checked without exceptions."""

from __future__ import annotations

from typing import Any

import diffusers

AutoencoderKL: Any = diffusers.AutoencoderKL
FlowMatchEulerDiscreteScheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler
SD3Transformer2DModel: Any = diffusers.SD3Transformer2DModel
StableDiffusion3Pipeline: Any = diffusers.StableDiffusion3Pipeline
