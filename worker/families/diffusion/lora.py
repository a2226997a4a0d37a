"""LoRA and DoRA on the attention layers of an SD3 transformer.

Hu et al., arXiv 2106.09685: W + (α/r)·B·A with B = 0 at first, so that training begins at the base model.
DoRA (Liu et al., arXiv 2402.09353) trains the magnitude of each row beside the direction. Adapters are stored
as diffusers stores them, in `pytorch_lora_weights.safetensors`, with rank and α in the file's metadata:
without them α would be taken for the rank.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

WEIGHTS: Final = "pytorch_lora_weights.safetensors"

#: Projections of image and text tokens in every attention, SD3.5-medium's second one (`attn2`) included.
TARGETS: Final = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
    "to_add_out",
)

#: The name of the adapter under training.
_TRAINED: Final = "default"


def add(transformer: Any, *, rank: int, alpha: float | None, use_dora: bool, seed: int) -> None:
    """Freeze the transformer and give it an fp32 adapter to train; `alpha` defaults to the rank."""
    transformer.requires_grad_(False)
    scale: Any = rank if alpha is None else alpha  # peft says int and takes any number
    config = LoraConfig(
        r=rank,
        lora_alpha=scale,
        use_dora=use_dora,
        target_modules=list(TARGETS),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=_TRAINED)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            # The base may be half precision; small updates of an adapter would be rounded away in it.
            parameter.data = parameter.data.float()


def save(transformer: Any, directory: Path) -> None:
    """Write the trained adapter to `directory`, as `load_lora_weights` of a diffusers pipeline reads it."""
    config = transformer.peft_config[_TRAINED].to_dict()
    # A set: sorted, so that the file does not depend on how this process hashes strings.
    config["target_modules"] = sorted(config["target_modules"])
    StableDiffusion3Pipeline.save_lora_weights(
        directory,
        transformer_lora_layers=get_peft_model_state_dict(transformer, adapter_name=_TRAINED),
        transformer_lora_adapter_metadata=config,
        weight_name=WEIGHTS,
    )


def activate(pipeline: Any, adapters: Sequence[tuple[str, Path, float]]) -> None:
    """Lay exactly these adapters (name, directory, scale) over a pipeline, in this order; none leaves the
    base model.

    They stay separate from the base weights, so that taking them off leaves no rounding behind.
    """
    if getattr(pipeline.transformer, "peft_config", None):
        pipeline.unload_lora_weights()
    for name, directory, _ in adapters:
        _load(pipeline, name, directory)
    if adapters:
        pipeline.set_adapters([name for name, _, _ in adapters], [scale for _, _, scale in adapters])


def _load(pipeline: Any, name: str, directory: Path) -> None:
    weights, metadata = pipeline.lora_state_dict(
        directory,
        weight_name=WEIGHTS,
        use_safetensors=True,
        local_files_only=True,
        return_lora_metadata=True,
    )
    # Ours are for the transformer only; `load_lora_weights` would warn of two text encoders for each of them.
    if any(key.startswith(pipeline.text_encoder_name) for key in weights):
        pipeline.load_lora_weights(
            directory, weight_name=WEIGHTS, adapter_name=name, use_safetensors=True, local_files_only=True
        )
    else:
        with warnings.catch_warnings():
            # peft asks to be sure about a second adapter beside the first; we are.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`", category=UserWarning)
            pipeline.load_lora_into_transformer(
                weights, pipeline.transformer, adapter_name=name, metadata=metadata, _pipeline=pipeline
            )
