"""Where a webhook may be sent: the URL's shape, and which addresses are refused.

Requests to a URL that a tenant chose must not reach what only this network can: services without a password, the
metadata of a cloud, the host itself. Hosts that are written as addresses are checked when a job is submitted; names
when they are resolved, at every try.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal, Self
from urllib.parse import urlsplit

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LONGEST_URL = 2048
DEFAULT_PORTS = {"https": 443, "http": 80}

# What RFC 3986 lets a URL have.
_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
# The resolver reads 127.1, 2130706433 and 0x7f000001 as addresses.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

#: IPv6 that is routed in the internet.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
#: IPv4 behind NAT64.
_NAT64 = IPv6Network("64:ff9b::/96")
#: Beside what every version of :mod:`ipaddress` knows not to be global.
_NEVER = (
    # The host's agent in one cloud looks public; that of another is among the protocol assignments.
    IPv4Network("168.63.129.16/32"),
    IPv4Network("192.0.0.0/24"),
    # IPv4 within IPv6 that a relay would unpack, and the relays.
    IPv4Network("192.88.99.0/24"),
    IPv6Network("2001::/23"),
    IPv6Network("2002::/16"),
    # Documentation.
    IPv6Network("3fff::/20"),
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL in parts, read once: what is checked is what is connected to."""

    scheme: Literal["https", "http"]
    #: A name in small letters, or an address without brackets.
    host: str
    port: int
    #: Path and query, as sent.
    path: str

    @property
    def address(self) -> Address | None:
        """The host, when it is an address."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """The ``Host`` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """Reads a URL that a webhook is sent to.

    Raises:
        ValueError: it is not an http or https URL, or has what such a URL must not have. Does not repeat it.
    """
    if len(url) > LONGEST_URL:
        raise ValueError(f"must have at most {LONGEST_URL} characters")
    if not _URL.fullmatch(url):
        raise ValueError("must be a URL in ASCII: percent-encode the rest of it, and write the host in Punycode")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("is not a URL: the host or the port cannot be read") from None
    if parts.scheme not in ("https", "http"):
        raise ValueError("must begin with https:// (http:// only within networks that the operator allows)")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user or password; the signature says who sends")
    if parts.fragment or url.endswith("#"):
        raise ValueError("must not have a fragment (#…), which is never sent")
    if port == 0:
        raise ValueError("the port must be from 1 to 65535")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    scheme: Literal["https", "http"] = "https" if parts.scheme == "https" else "http"
    return Target(scheme=scheme, host=_host(host), port=port or DEFAULT_PORTS[scheme], path=path)


def _host(host: str) -> str:
    if ":" in host and "%" not in host:
        try:
            return str(IPv6Address(host))
        except ValueError:
            raise ValueError("the host is not an IPv6 address") from None
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ValueError("an IPv4 host must be four decimal numbers, as in 203.0.113.7") from None
    # Nor an address with a zone, which would be one of this host's own links.
    if not _NAME.fullmatch(host):
        raise ValueError("has no host that can be reached; write a name such as hooks.example.com")
    return host


def place_of(url: str) -> str:
    """Host and port of a URL, for what is counted per host; never raises, whatever the text."""
    return re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0].lower()


@dataclass(frozen=True)
class AddressPolicy:
    """Which addresses may be connected to: public ones, and those in networks that the operator lists."""

    allowed: tuple[Network, ...] = ()

    @classmethod
    def of(cls, networks: str) -> Self:
        """From networks or addresses with commas between, as the setting has them. Raises ValueError."""
        return cls(tuple(read_networks(networks)))

    def permits(self, address: Address, scheme: str) -> bool:
        """Whether a request may go there. Without TLS only where the operator says so."""
        inner = _unwrapped(address)
        listed = any(inner in network or address in network for network in self.allowed)
        return listed or (scheme == "https" and is_public(address))

    def refusal(self, target: Target) -> str | None:
        """What is wrong with a target as far as can be told without resolving its name; None: nothing."""
        address = target.address
        if address is None and target.host != "localhost" and not target.host.endswith(".localhost"):
            if target.scheme == "http" and not self.allowed:
                return "must begin with https://; http:// is for networks that the operator allows, and none is"
            return None
        if address is None:
            # By RFC 6761 such names are this host, whoever resolves them.
            address = IPv4Address("127.0.0.1")
        if self.permits(address, target.scheme):
            return None
        if target.scheme == "http" and is_public(address):
            return "must begin with https://; http:// is for networks that the operator allows"
        return "is not a public address; name a host that the internet reaches, or ask the operator to allow this one"


def read_networks(text: str) -> Iterator[Network]:
    """Networks or addresses with commas between. Raises ValueError."""
    for part in text.split(","):
        if part.strip():
            yield ipaddress.ip_network(part.strip())


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet's: not private, loopback, link-local, multicast, shared or reserved."""
    inner = _unwrapped(address)
    if any(inner in network for network in _NEVER):
        return False
    if isinstance(inner, IPv6Address):
        return inner in _GLOBAL_UNICAST and inner.is_global
    return inner.is_global and not inner.is_multicast and not inner.is_reserved


def _unwrapped(address: Address) -> Address:
    """The IPv4 address within an IPv6 one, where packets would go there."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address
