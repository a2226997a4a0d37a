"""A complete SD3 pipeline of the real classes, untrained and so small that a step takes milliseconds."""

from __future__ import annotations

from typing import Any

import torch

#: What a registered version of it would say of itself.
PARAMETERS: dict[str, Any] = {
    "default_width": 32,
    "default_height": 32,
    "size_multiple": 8,
    "min_size": 16,
    "max_size": 64,
    "default_steps": 3,
    "max_steps": 50,
    "default_guidance_scale": 2.0,
    "max_text_tokens": 8,
}

TEXT_TOKENS = 8


def transformer(seed: int = 0) -> Any:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )


def pipeline() -> Any:
    """Two CLIP encoders, no T5, 4 latent pixels to the image pixel."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    made = StableDiffusion3Pipeline(
        transformer=transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=_vae(),
        text_encoder=_text_encoder(1),
        tokenizer=_tokenizer(),
        text_encoder_2=_text_encoder(2),
        tokenizer_2=_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    made.set_progress_bar_config(disable=True)
    return made


def _vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(3)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(97, 123)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=TEXT_TOKENS
    )


def _text_encoder(seed: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = _tokenizer()
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()
