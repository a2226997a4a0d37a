"""Put a pipeline, the large parts in half precision, or a GAN among the shipped assets.

python -m starter.recipe.publish [--pipeline DIR] [--gan DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

import starter
from starter.recipe.untyped import StableDiffusion3Pipeline


def main() -> None:
    """Replace what ships as a whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=None)
    parser.add_argument("--gan", type=Path, default=None)
    options = parser.parse_args()
    if options.pipeline:
        publish_pipeline(options.pipeline)
    if options.gan:
        publish_gan(options.gan)


def publish_pipeline(folder: Path) -> None:
    """Replace the shipped pipeline."""
    # transformers loads weights as they are stored, diffusers as float32: with text encoders in half precision, plain
    # `from_pretrained(folder)` would give a pipeline of two precisions. They are small.
    precision = {"transformer": torch.float16, "vae": torch.float16, "default": torch.float32}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, torch_dtype=precision)
    target = starter.diffusion_dir()
    fresh = target.with_name("diffusion.new")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    for path in fresh.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        if (path.suffix == ".json" and "config" in path.name) or path.name == "model_index.json":
            path.write_text(cleaned(path.read_text(encoding="utf-8")), encoding="utf-8")
    _replace(target, fresh)


def publish_gan(folder: Path) -> None:
    """Replace the shipped GAN: a version as `gan` leaves it."""
    target = starter.gan_dir()
    fresh = target.with_name("gan.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o755)
    for path in folder.iterdir():
        shutil.copyfile(path, fresh / path.name)
        (fresh / path.name).chmod(0o644)
    _replace(target, fresh)


def _replace(target: Path, fresh: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"{target.name}: {size / 1e6:.1f} MB")


def cleaned(text: str) -> str:
    """A configuration without the path it was loaded from, naming tokenizers by their public class."""
    values = json.loads(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    values.pop("_name_or_path", None)
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    main()
