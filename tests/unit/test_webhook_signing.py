"""Secrets and signatures of webhooks, against the example of the reference libraries."""

from __future__ import annotations

import base64

import pytest

from calotype.webhooks.signing import key_of, new_secret, signature

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
#: What the libraries of Standard Webhooks give for this message.
KNOWN = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_is_signed_as_the_reference_libraries_sign_it() -> None:
    body = b'{"test": 2432232314}'
    assert signature([SECRET], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == KNOWN


def test_a_message_is_signed_with_every_secret_in_their_order() -> None:
    other = new_secret()
    both = signature([SECRET, other], "id", 1, b"{}")
    assert both.split(" ") == [signature([SECRET], "id", 1, b"{}"), signature([other], "id", 1, b"{}")]


def test_a_new_secret_is_a_secret_and_never_the_same() -> None:
    made = {new_secret() for _ in range(50)}
    assert len(made) == 50
    assert {len(key_of(secret)) for secret in made} == {32}


@pytest.mark.parametrize("length", [24, 25, 32, 64])
def test_a_secret_may_have_24_to_64_bytes_padded_or_not(length: int) -> None:
    text = base64.b64encode(bytes(range(length))).decode()
    assert key_of(f"whsec_{text}") == key_of(f"whsec_{text.rstrip('=')}") == bytes(range(length))


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_" + "-_" * 16,
        "whsec_MfKQ9r8GKYqrTwjUPD8I LPZIo2LaLaSw",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwM",
        "whsec_" + "ä" * 32,
    ],
)
def test_what_is_no_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64 of 24 to 64") as caught:
        key_of(secret)
    assert "MfKQ9r8" not in str(caught.value)
