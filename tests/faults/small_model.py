"""A model of one small file, and requests that it can do."""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Any

from sqlalchemy import Engine

from calotype import registry
from calotype.artifacts import ObjectStore
from calotype.database import transaction
from calotype.jobs import Family
from calotype.registry import ModelFile, ModelVersion, NewVersion

NAME = "small-model"
WEIGHTS = b"weights" * 100
KEY = "models/small/weights.safetensors"
PARAMETERS = {
    "default_width": 64,
    "default_height": 64,
    "size_multiple": 8,
    "min_size": 32,
    "max_size": 128,
    "default_steps": 2,
    "max_steps": 100,
    "default_guidance_scale": 3.0,
    "max_text_tokens": 17,
}


def register(engine: Engine, store: ObjectStore) -> ModelVersion:
    """Put it into the store and the registry, for every tenant."""
    store.put_bytes(KEY, WEIGHTS)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    file = ModelFile(path="weights.safetensors", object_key=KEY, bytes=len(WEIGHTS), sha256=digest)
    new = NewVersion(
        name=NAME,
        tenant_id=None,
        family=Family.DIFFUSION,
        architecture="sd3",
        files=[file],
        source={"type": "starter"},
        parameters=PARAMETERS,
    )
    with transaction(engine) as conn:
        return registry.register_version(conn, new)


def request(do: str = "image", **plan: Any) -> dict[str, Any]:
    """A job as clients ask for it, for the handlers of this suite; each has a seed of its own."""
    prompt = json.dumps({"do": do, **plan}, default=str)
    wanted = {"prompt": prompt, "seed": secrets.randbelow(2**50)}
    return {"kind": "generate", "family": "diffusion", "model": NAME, "input": wanted}
