"""Identifiers."""

from __future__ import annotations

import random
from uuid import UUID

import uuid_utils


def new_id() -> UUID:
    """A UUIDv7: sorts by time of creation."""
    return UUID(int=uuid_utils.uuid7().int)


def new_dataset_id() -> str:
    """``ds_`` and the 32 hexadecimal digits of a UUIDv7."""
    return f"ds_{new_id().hex}"


def draw_seed() -> int:
    """A seed for a job that names none: 32 bits, so that people can write it down."""
    # Nothing is to be kept secret here, and Python seeds this generator anew in every process.
    return random.getrandbits(32)
