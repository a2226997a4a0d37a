"""Lay out the shipped pipeline as `transformer` wants it, to train it further without repeating the earlier steps.

python -m starter.recipe.unpack --work DIR
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import starter

#: What `vae` and `text` leave behind, and the transformer to go on from.
PARTS = (
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "tokenizer",
    "tokenizer_2",
    "tokenizer_3",
    "transformer",
)


def main() -> None:
    """Copy the parts into DIR, which must not have them yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    work: Path = parser.parse_args().work
    for part in PARTS:
        shutil.copytree(starter.diffusion_dir() / part, work / part)


if __name__ == "__main__":
    main()
