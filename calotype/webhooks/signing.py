"""Secrets and signatures, as Standard Webhooks 1.0 has them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
#: Bytes of a secret that is made here.
SECRET_BYTES = 32
#: Bytes that a secret may have.
FEWEST_BYTES, MOST_BYTES = 24, 64
#: No secret is written with more characters.
LONGEST_SECRET = len(PREFIX) + 4 * -(-MOST_BYTES // 3)

_SHAPE = (
    f"must be {PREFIX} and the base64 of {FEWEST_BYTES} to {MOST_BYTES} random bytes; leave it out for the tenant's own"
)


def new_secret() -> str:
    """``whsec_`` and the base64 of random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode("ascii")


def key_of(secret: str) -> bytes:
    """The bytes that a secret stands for.

    Raises:
        ValueError: it is not ``whsec_`` and the base64 of 24 to 64 bytes. The message does not repeat it.
    """
    if not secret.startswith(PREFIX) or len(secret) > LONGEST_SECRET:
        raise ValueError(_SHAPE)
    text = secret.removeprefix(PREFIX)
    try:
        # Receivers' libraries take it without its padding, too.
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(_SHAPE) from None
    if not FEWEST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(_SHAPE)
    return key


def signature(keys: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: one signature a secret, so that a receiver may know either.

    Args:
        keys: secrets as :func:`key_of` takes them.
        message_id: the ``webhook-id``; has no full stop in it.
        timestamp: Unix seconds of this try.
        body: the very bytes that are sent.
    """
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.new(key_of(secret), content, hashlib.sha256).digest() for secret in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode('ascii')}" for digest in digests)
