"""Where a webhook may be sent: URLs are read strictly, and only public addresses are permitted by themselves."""

from __future__ import annotations

import ipaddress

import pytest

from calotype.webhooks.targets import AddressPolicy, is_public, parse_url, place_of

PUBLIC = ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104 - not bound to
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::1",
    "2001:0:7f00:1::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_every_other_address_is_not_also_within_ipv6(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://hooks.example.com", "hooks.example.com", 443, "/"),
        ("https://Hooks.Example.com/a/b?c=d&e=%2F", "hooks.example.com", 443, "/a/b?c=d&e=%2F"),
        ("https://hooks.example.com:8443?c", "hooks.example.com", 8443, "/?c"),
        ("http://10.0.0.1:8000/x@y", "10.0.0.1", 8000, "/x@y"),
        ("https://[2606:4700:0::1111]/", "2606:4700::1111", 443, "/"),
        ("https://xn--exmple-cua.com/", "xn--exmple-cua.com", 443, "/"),
    ],
)
def test_a_url_is_read_into_its_parts(url: str, host: str, port: int, path: str) -> None:
    target = parse_url(url)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "ASCII"),
        ("hooks.example.com", "https://"),
        ("ftp://hooks.example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("https:///path", "no host"),
        ("https://user:pw@hooks.example.com/", "user or password"),
        ("https://hooks.example.com@10.0.0.1/", "user or password"),
        ("https://hooks.example.com#part", "fragment"),
        ("https://hooks.example.com/#", "fragment"),
        ("https://hooks.example.com:0/", "from 1"),
        ("https://hooks.example.com:65536/", "port"),
        ("https://hooks.example.com:x/", "port"),
        ("https://hooks.example.com\\@10.0.0.1/", "ASCII"),
        ("https://hooks.example.com/a b", "ASCII"),
        ("https://hooks.example.com/\r\nX: y", "ASCII"),
        ("https://exämple.com/", "ASCII"),
        ("https://127.1/", "four decimal numbers"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://0177.0.0.01/", "four decimal numbers"),
        ("https://[fe80::1%25eth0]/", "no host"),
        ("https://[::1/", "not a URL"),
        ("https://a..b/", "no host"),
        ("https://example.com./", "no host"),
        ("https://hooks.example.com/" + "a" * 2048, "2048 characters"),
    ],
)
def test_a_url_with_more_or_less_is_refused_and_not_repeated(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_url(url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("address", [f"[{one}]" if ":" in one else one for one in NOT_PUBLIC])
def test_a_host_that_is_no_public_address_is_refused_at_once(address: str) -> None:
    assert "public address" in (AddressPolicy().refusal(parse_url(f"https://{address}/hook")) or "")


@pytest.mark.parametrize("host", ["localhost", "deep.localhost", "LOCALHOST"])
def test_a_name_that_always_means_this_host_is_refused_at_once(host: str) -> None:
    assert AddressPolicy().refusal(parse_url(f"https://{host}/")) is not None
    assert AddressPolicy.of("127.0.0.0/8").refusal(parse_url(f"https://{host}/")) is None


def test_other_names_are_left_to_the_delivery() -> None:
    assert AddressPolicy().refusal(parse_url("https://anything.internal/")) is None


def test_a_network_that_the_operator_lists_is_permitted_with_and_without_tls() -> None:
    policy = AddressPolicy.of("10.1.0.0/16, fd00::/8")
    for url in ("http://10.1.2.3/", "https://10.1.2.3/", "http://[fd00::1]/", "http://[::ffff:10.1.2.3]/"):
        assert policy.refusal(parse_url(url)) is None, url
    for url in ("http://10.2.0.1/", "https://10.2.0.1/", "http://127.0.0.1/", "http://93.184.216.34/"):
        assert policy.refusal(parse_url(url)) is not None, url


def test_without_tls_nothing_is_permitted_where_no_network_is_listed() -> None:
    for url in ("http://93.184.216.34/", "http://hooks.example.com/"):
        assert "https://" in (AddressPolicy().refusal(parse_url(url)) or "")


def test_the_place_of_a_url_is_found_whatever_the_text() -> None:
    assert place_of("https://Hooks.example.com:8443/a?b#c") == "hooks.example.com:8443"
    assert place_of("https://[::1]?x") == "[::1]"
    assert place_of("nonsense") == ""
