"""A certificate that signs itself, made when a test needs one, with the library that comes with minio's client."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from Crypto.Hash import SHA256
from Crypto.PublicKey import ECC
from Crypto.Signature import DSS
from Crypto.Util.asn1 import DerBitString, DerInteger, DerObject, DerObjectId, DerOctetString, DerSequence, DerSetOf

_ECDSA_WITH_SHA256, _COMMON_NAME, _SUBJECT_ALT_NAME = "1.2.840.10045.4.3.2", "2.5.4.3", "2.5.29.17"
#: Tags of ASN.1 that the library has no class for; and those of X.509: a name of DNS, the version, the extensions.
_UTF8_STRING, _UTC_TIME = 0x0C, 0x17
_DNS_NAME, _VERSION, _EXTENSIONS = 2, 0, 3
_VALID = timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """For one host, valid an hour from now and an hour back; for servers and for those who are to trust them."""

    path: Path
    key_path: Path

    def serving(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key_path)
        return context

    def trusting(self) -> ssl.SSLContext:
        # Which checks the chain and the name, but does not ask for more than this certificate has.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.path)
        return context


def make_certificate(host: str, folder: Path) -> Certificate:
    """Writes a certificate and its key, as PEM, into ``folder``."""
    key = ECC.generate(curve="P-256")
    made = Certificate(path=folder / "certificate.pem", key_path=folder / "key.pem")
    made.path.write_text(ssl.DER_cert_to_PEM_cert(_certificate(host, key)))
    made.key_path.write_text(key.export_key(format="PEM"))
    return made


def _certificate(host: str, key: ECC.EccKey) -> bytes:
    """RFC 5280, section 4.1: what is signed, by what algorithm, and the signature."""
    algorithm = _sequence(DerObjectId(_ECDSA_WITH_SHA256).encode())
    name = _sequence(_set(_sequence(DerObjectId(_COMMON_NAME).encode(), _tagged(_UTF8_STRING, host.encode()))))
    now = datetime.now(UTC)
    signed = _sequence(
        # The third version, which has extensions.
        DerInteger(2, explicit=_VERSION).encode(),
        DerInteger(1).encode(),
        algorithm,
        name,
        _sequence(*(_tagged(_UTC_TIME, f"{when:%y%m%d%H%M%SZ}".encode()) for when in (now - _VALID, now + _VALID))),
        name,
        key.public_key().export_key(format="DER"),
        DerSequence([_alternative_name(host)], explicit=_EXTENSIONS).encode(),
    )
    signature = DSS.new(key, "fips-186-3", encoding="der").sign(SHA256.new(signed))
    return _sequence(signed, algorithm, DerBitString(signature).encode())


def _alternative_name(host: str) -> bytes:
    names = _sequence(DerOctetString(host.encode(), implicit=_DNS_NAME).encode())
    return _sequence(DerObjectId(_SUBJECT_ALT_NAME).encode(), DerOctetString(names).encode())


def _sequence(*parts: bytes) -> bytes:
    return bytes(DerSequence(parts).encode())


def _set(part: bytes) -> bytes:
    return bytes(DerSetOf([part]).encode())


def _tagged(tag: int, content: bytes) -> bytes:
    return bytes(DerObject(tag, content).encode())
