"""Jobs of the diffusion family."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from calotype.specs.common import Adapter, DatasetRef, GenerateRequest, ModelName, ModelRef, Request, Seed, Strict

#: Width and height in pixels; the model's own limits are checked when the job is submitted.
Side = Annotated[int, Field(ge=8, le=8192)]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=4000)]
#: Sampling schedules for flow matching.
Scheduler = Literal["flow-match-euler", "flow-match-heun"]


class DiffusionGenerateInput(Strict):
    """Text to image; with `init_image` and `strength`, image to image."""

    prompt: Prompt
    negative_prompt: Annotated[str, StringConstraints(max_length=4000)] = ""
    num_images: int = Field(default=1, ge=1, le=64)
    width: Side | None = None
    """Pixels; the model's own size when null."""
    height: Side | None = None
    """Pixels; the model's own size when null."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Sampling steps; the model's own number when null."""
    guidance_scale: float | None = Field(default=None, ge=0.0, le=50.0)
    """Classifier-free guidance; 1 or less turns it off; the model's own when null."""
    seed: Seed | None = None
    """Image number i is made with seed + i; drawn when null."""
    scheduler: Scheduler | None = None
    """The model's own when null."""
    init_image: Annotated[str, StringConstraints(min_length=1, max_length=262_144)] | None = None
    """`ds_…/file.png` of a dataset, `<job id>/<artifact>`, or a `data:image/png;base64,…` URL (256 KiB at most)."""
    strength: float | None = Field(default=None, gt=0.0, le=1.0)
    """How much of `init_image` is replaced; 1 is all of it. Only with `init_image`, then 0.6 when null."""
    adapters: tuple[Adapter, ...] = Field(default=(), max_length=8, strict=False)
    """LoRA adapters, laid over the model in this order."""

    @model_validator(mode="after")
    def _strength_belongs_to_an_image(self) -> Self:
        if self.strength is not None and self.init_image is None:
            raise ValueError("strength needs init_image; leave strength out or give an image")
        return self


class DiffusionGenerate(GenerateRequest):
    """Makes images from a prompt."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "generate",
                    "family": "diffusion",
                    "model": "starter-diffusion",
                    "input": {"prompt": "blue bird logo", "num_images": 4, "seed": 42},
                }
            ]
        }
    )

    kind: Literal["generate"]
    family: Literal["diffusion"]
    model: ModelRef
    """`name`, or `name@version`; the latest version when none is given."""
    input: DiffusionGenerateInput


class DiffusionTrainInput(Strict):
    """Fine-tuning with the flow-matching loss."""

    dataset: DatasetRef
    """The id or the name of the dataset; its captions are the prompts."""
    label: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Train only on images with this label."""
    method: Literal["lora", "full"] = "lora"
    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the LoRA."""
    alpha: float | None = Field(default=None, gt=0, le=4096)
    """Scale of the LoRA, divided by the rank; equal to the rank when null."""
    use_dora: bool = False
    """Weight-decomposed LoRA."""
    steps: int = Field(ge=1, le=10_000_000)
    batch_size: int = Field(default=8, ge=1, le=4096)
    """Images of one optimizer step; split into micro-batches when memory runs out."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    lr_warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0)
    resolution: Side | None = None
    """Pixels a side; the model's own size when null."""
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """fp16 only on a GPU."""
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints; what a lost worker can cost at most."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Average the weights over training; off when null."""
    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the empty one, so that guidance keeps working."""
    loss: Literal["velocity", "diffusers_compat"] = "velocity"
    timestep_sampling: Literal["logit_normal", "uniform", "mode"] = "logit_normal"
    logit_mean: float = Field(default=0.0, ge=-5, le=5)
    """Positive means more noise."""
    logit_std: float = Field(default=1.0, gt=0, le=5)
    validation_prompts: tuple[Prompt, ...] = Field(default=(), max_length=16, strict=False)
    """An image of each is made when training ends."""
    seed: Seed | None = None
    output_model: ModelName
    """The result is registered as the next version of this model of yours."""


class DiffusionTrain(Request):
    """Fine-tunes a diffusion model on a dataset."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "train",
                    "family": "diffusion",
                    "model": "starter-diffusion",
                    "input": {
                        "dataset": "starter-brand",
                        "method": "lora",
                        "rank": 8,
                        "steps": 100,
                        "batch_size": 8,
                        "learning_rate": 1e-3,
                        "output_model": "my-brand",
                    },
                }
            ]
        }
    )

    kind: Literal["train"]
    family: Literal["diffusion"]
    model: ModelRef
    """The model that training starts from."""
    input: DiffusionTrainInput
