"""Request bodies that a fresh installation accepts as they stand; `/openapi.json` shows them."""

from __future__ import annotations

from api.calls import Example

JOB_EXAMPLES = (
    Example(
        name="generate",
        summary="four images from a prompt",
        value={
            "kind": "generate",
            "family": "diffusion",
            "model": "starter-diffusion",
            "input": {"prompt": "blue bird logo", "num_images": 4, "seed": 42},
        },
    ),
    Example(
        name="generate_in_full",
        summary="with everything said",
        value={
            "kind": "generate",
            "family": "diffusion",
            "model": "starter-diffusion",
            "input": {
                "prompt": "blue bird logo",
                "negative_prompt": "",
                "num_images": 4,
                "width": 64,
                "height": 64,
                "steps": 20,
                "guidance_scale": 4.0,
                "seed": 42,
            },
            "priority": 7,
            "max_attempts": 3,
            "deadline_seconds": 600,
            "timeout_seconds": 600,
            "metadata": {"campaign": "spring"},
        },
    ),
    Example(
        name="train_lora",
        summary="fine-tune a model with a LoRA",
        value={
            "kind": "train",
            "family": "diffusion",
            "model": "starter-diffusion",
            "input": {
                "dataset": "starter-brand",
                "method": "lora",
                "rank": 16,
                "steps": 100,
                "batch_size": 8,
                "learning_rate": 0.0001,
                "resolution": 64,
                "mixed_precision": "no",
                "checkpoint_every": 50,
                "validation_prompts": ["blue bird logo"],
                "seed": 0,
                "output_model": "my-brand",
            },
        },
    ),
    Example(
        name="train_gan",
        summary="train a small GAN, which stops when it collapses",
        value={
            "kind": "train",
            "family": "gan",
            "input": {
                "dataset": "starter-brand",
                "architecture": "stylegan3-t",
                "resolution": 64,
                # Small enough for a CPU: the default widths are for a GPU.
                "kimg": 1,
                "batch_size": 16,
                "channel_base": 2048,
                "channel_max": 64,
                "resize": "pad",
                "augment": "ada",
                "mode_collapse": {"every_steps": 16, "action": "stop"},
                "snapshot_every": 16,
                "frechet_samples": 128,
                "seed": 0,
                "output_model": "my-gan",
            },
        },
    ),
    Example(
        name="generate_with_a_gan",
        summary="four images of a GAN, in a colour that it knows",
        value={
            "kind": "generate",
            "family": "gan",
            "model": "starter-gan",
            "input": {"num_images": 4, "seed": 7, "label": "blue"},
        },
    ),
    Example(
        name="animate_a_gan",
        summary="from image to image and back to the first",
        value={
            "kind": "generate",
            "family": "gan",
            "model": "starter-gan",
            "input": {
                "num_images": 3,
                "seed": 7,
                "interpolation": {"frames": 24, "frames_per_second": 24, "loop": True},
            },
        },
    ),
    Example(
        name="benchmark",
        summary="compare models on your own data",
        value={
            "kind": "benchmark",
            "input": {
                "contenders": [
                    {"family": "diffusion", "model": "starter-diffusion"},
                    {"family": "gan", "model": "starter-gan"},
                ],
                "dataset": "starter-logos-heldout",
                "num_samples": 64,
                "batch_sizes": [1, 8],
                "metrics": ["latency", "throughput", "memory", "fd", "kid"],
                "seed": 0,
            },
        },
    ),
)

TENANT_EXAMPLE = Example(
    name="tenant",
    summary="a tenant",
    value={"name": "brand-studio", "weight": 2, "max_queued": 1000, "max_running": 8},
)
TENANT_CHANGE_EXAMPLE = Example(
    name="change", summary="a larger share, and one limit lifted", value={"weight": 3, "max_running": None}
)
PAUSE_EXAMPLE = Example(name="pause", summary="with the reason", value={"reason": "new drivers on all nodes"})
KEY_EXAMPLE = Example(
    name="key",
    summary="a key for an application",
    value={"tenant": "brand-studio", "name": "web shop", "scopes": ["jobs:read", "jobs:write"]},
)
UPLOAD_EXAMPLE = Example(name="upload", summary="announce a large archive", value={"name": "brand-logos"})
MODEL_UPLOAD_EXAMPLE = Example(
    name="upload",
    summary="announce the folder of a GAN",
    value={
        "files": [
            {"path": "model.json", "bytes": 1460},
            {"path": "generator.safetensors", "bytes": 58_720_256},
        ]
    },
)
MODEL_EXAMPLES = (
    Example(
        name="hub",
        summary="from a model hub, pinned to a revision",
        value={
            "name": "sd35-medium",
            "family": "diffusion",
            "architecture": "sd3",
            "source": {
                "type": "hub",
                "repo": "stabilityai/stable-diffusion-3.5-medium",
                "revision": "b940f670f0eda2d07fbb75229e779da1ad11eb80",
            },
            "licence": "stabilityai-ai-community",
            "parameters": {
                "default_width": 1024,
                "default_height": 1024,
                "size_multiple": 16,
                "min_size": 256,
                "max_size": 1440,
                "default_steps": 28,
                "max_steps": 100,
                "default_guidance_scale": 4.5,
                "max_text_tokens": 256,
            },
        },
    ),
    Example(
        name="s3",
        summary="from files that are in the object store",
        value={
            "name": "brand-model",
            "family": "diffusion",
            "architecture": "sd3",
            "source": {
                "type": "s3",
                "prefix": "tenants/0198a000-0000-7000-8000-000000000000/imports/brand-model/",
            },
            "licence": "proprietary",
            "parameters": {
                "default_width": 64,
                "default_height": 64,
                "size_multiple": 8,
                "min_size": 32,
                "max_size": 128,
                "default_steps": 20,
                "max_steps": 200,
                "default_guidance_scale": 3.5,
                "max_text_tokens": 16,
            },
        },
    ),
    Example(
        name="gan",
        summary="an official StyleGAN3 network after its import",
        value={
            "name": "stylegan3-ffhq",
            "family": "gan",
            "architecture": "stylegan3-r",
            "source": {
                "type": "s3",
                "prefix": "tenants/0198a000-0000-7000-8000-000000000000/imports/stylegan3-ffhq/",
            },
            "licence": "nvidia-source-code-licence",
            "accept_licence": "nvidia-source-code-licence",
            "default_truncation_psi": 0.7,
        },
    ),
)
