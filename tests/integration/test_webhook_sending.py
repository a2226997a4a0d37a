"""One try of a webhook against real sockets: where it connects, how long it takes, what it believes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from certificates import Certificate, make_certificate
from webhook_receiver import Answer, Receiver

from calotype.webhooks.network import SocketAddress, dial, look_up
from calotype.webhooks.sending import KEPT_CHARACTERS, Sender
from calotype.webhooks.signing import new_secret
from calotype.webhooks.targets import AddressPolicy

LOOPBACK = AddressPolicy.of("127.0.0.0/8")
UNRESOLVED = "the host does not resolve to public addresses"
SECRET = new_secret()
BODY = b'{"type":"job.succeeded"}'


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Of `receiver.test`."""
    return make_certificate("receiver.test", tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_receiver(certificate: Certificate) -> Iterator[Receiver]:
    """Shows the certificate."""
    made = Receiver(certificate.serving())
    yield made
    made.close()


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket], object]], str]]:
    """`raw(talk)`: the URL of a server that does with its first connection what `talk` does."""
    listeners: list[socket.socket] = []

    def serve(talk: Callable[[socket.socket], object]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with listener.accept()[0] as connection:
                try:
                    talk(connection)
                except OSError:
                    """The sender has had enough."""

        threading.Thread(target=run, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield serve
    for listener in listeners:
        listener.close()


def send(sender: Sender, url: str) -> Any:
    return sender.send(url, "message-1", BODY, [SECRET])


def found(*addresses: str) -> Callable[[str, int], Sequence[SocketAddress]]:
    """A resolver that always says this."""

    def lookup(_host: str, port: int) -> Sequence[SocketAddress]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(family, (address, port)) for family, address in zip(families, addresses, strict=True)]

    return lookup


class Dials:
    """Notes where connections would go, and makes none."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    def __call__(self, address: SocketAddress, _seconds: float) -> socket.socket:
        self.dialled.append(str(address[1][0]))
        raise ConnectionRefusedError(111, "Connection refused")


# --- The message ---


def test_a_message_arrives_signed_and_exactly_as_it_was_written(receiver: Receiver) -> None:
    before = int(time.time())
    reply = send(Sender(LOOPBACK), f"{receiver.url}?a=b%2F")

    assert (reply.status_code, reply.error, reply.answer) == (200, None, None)
    (got,) = receiver.received
    assert (got.path, got.body, got.id) == ("/hook?a=b%2F", BODY, "message-1")
    assert got.signed_by(SECRET) and not got.signed_by(new_secret())
    assert before <= int(got.headers["webhook-timestamp"]) <= int(time.time())
    assert got.headers["content-type"] == "application/json"
    assert got.headers["host"] == f"127.0.0.1:{receiver.port}"


@pytest.mark.parametrize("status", [199 + 1, 202, 204, 299])
def test_any_2xx_says_that_the_receiver_has_it(receiver: Receiver, status: int) -> None:
    receiver.answers = [Answer(status)]
    assert send(Sender(LOOPBACK), receiver.url).error is None


@pytest.mark.parametrize("status", [400, 404, 410, 429, 500, 503])
def test_anything_else_is_a_failure_with_what_the_receiver_said(receiver: Receiver, status: int) -> None:
    receiver.answers = [Answer(status, {"Retry-After": "7"}, "nö\x00\x1b[31m".encode())]
    reply = send(Sender(LOOPBACK), receiver.url)
    assert (reply.status_code, reply.gone, reply.retry_after) == (status, status == 410, 7.0)
    assert str(status) in reply.error
    assert reply.answer == "nö  [31m"


def test_a_redirect_is_a_failure_and_not_followed(receiver: Receiver) -> None:
    receiver.answers = [Answer(307, {"Location": receiver.url})]
    reply = send(Sender(LOOPBACK), receiver.url)
    assert reply.status_code == 307 and "redirect" in reply.error
    assert len(receiver.received) == 1


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert send(Sender(LOOPBACK), receiver.url).error is None


# --- Where it connects ---


@pytest.mark.parametrize(
    "addresses",
    [
        ("10.0.0.1",),
        ("127.0.0.1",),
        ("169.254.169.254",),
        ("::1",),
        ("::ffff:10.0.0.1",),
        ("fe80::1%eth0",),
        ("93.184.216.34", "10.0.0.1"),
        ("10.0.0.1", "93.184.216.34"),
        (),
    ],
)
def test_nothing_is_connected_to_when_one_of_the_addresses_is_not_public(addresses: tuple[str, ...]) -> None:
    dials = Dials()
    reply = send(Sender(AddressPolicy(), lookup=found(*addresses), dial=dials), "https://hooks.example.com/")
    assert (reply.status_code, reply.error, reply.silent) == (None, UNRESOLVED, False)
    assert dials.dialled == []


def test_a_name_of_this_network_is_told_apart_from_no_name_by_nobody() -> None:
    def unknown(_host: str, _port: int) -> Sequence[SocketAddress]:
        raise socket.gaierror(-2, "Name or service not known")

    replies = [
        send(Sender(AddressPolicy(), lookup=lookup, dial=Dials()), "https://db.internal/")
        for lookup in (unknown, found("10.3.4.5"))
    ]
    assert [reply.error for reply in replies] == [UNRESOLVED, UNRESOLVED]


def test_what_was_checked_is_what_is_connected_to_when_the_name_changes_its_address() -> None:
    answers = iter([found("93.184.216.34", "2606:4700::1111"), found("10.0.0.1")])
    dials = Dials()
    sender = Sender(AddressPolicy(), lookup=lambda host, port: next(answers)(host, port), dial=dials)

    first = send(sender, "https://rebinding.example.com/")
    assert first.error == "the connection failed: Connection refused"
    # Resolved once: the second answer is still there for the next try, which is refused.
    assert dials.dialled == ["93.184.216.34", "2606:4700::1111"]
    assert send(sender, "https://rebinding.example.com/").error == UNRESOLVED
    assert len(dials.dialled) == 2


def test_without_tls_only_listed_networks_are_connected_to() -> None:
    dials = Dials()
    reply = send(Sender(LOOPBACK, lookup=found("93.184.216.34"), dial=dials), "http://hooks.example.com/")
    assert reply.error == UNRESOLVED and dials.dialled == []


def test_the_next_address_is_tried_when_one_refuses(receiver: Receiver) -> None:
    tried: list[str] = []

    def second_only(address: SocketAddress, seconds: float) -> socket.socket:
        tried.append(str(address[1][0]))
        if len(tried) == 1:
            raise ConnectionRefusedError(111, "Connection refused")
        return dial(address, seconds)

    sender = Sender(LOOPBACK, lookup=found("127.0.0.2", "127.0.0.1"), dial=second_only)
    assert send(sender, f"http://two.test:{receiver.port}/").error is None
    assert tried == ["127.0.0.2", "127.0.0.1"]


def test_the_systems_resolver_is_asked_where_none_is_given(receiver: Receiver) -> None:
    assert {place[0] for _, place in look_up("localhost", 80)} <= {"127.0.0.1", "::1"}
    policy = AddressPolicy.of("127.0.0.0/8,::1/128")
    assert send(Sender(policy), f"http://localhost:{receiver.port}/").error is None


# --- TLS ---


def test_tls_is_verified_against_the_name_in_the_url(tls_receiver: Receiver, certificate: Certificate) -> None:
    sender = Sender(LOOPBACK, ssl_context=certificate.trusting(), lookup=found("127.0.0.1"))
    assert send(sender, f"https://receiver.test:{tls_receiver.port}/").error is None
    other = send(sender, f"https://other.test:{tls_receiver.port}/")
    assert other.status_code is None and "the certificate is refused: Hostname mismatch" in other.error
    assert len(tls_receiver.received) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(tls_receiver: Receiver) -> None:
    reply = send(Sender(LOOPBACK, lookup=found("127.0.0.1")), f"https://receiver.test:{tls_receiver.port}/")
    assert "the certificate is refused" in reply.error and reply.silent
    assert tls_receiver.received == []


def test_a_receiver_without_tls_fails_as_such(receiver: Receiver) -> None:
    reply = send(Sender(LOOPBACK, lookup=found("127.0.0.1")), f"https://receiver.test:{receiver.port}/")
    assert reply.status_code is None and reply.error.startswith("TLS failed")
    assert reply.silent


# --- Bounds ---


def _seconds(action: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.monotonic()
    return action(), time.monotonic() - begun


def test_a_receiver_that_never_answers_is_given_up_on(raw: Callable[..., str]) -> None:
    url = raw(lambda connection: time.sleep(20))
    reply, seconds = _seconds(lambda: send(Sender(LOOPBACK, seconds=0.5), url))
    assert (reply.status_code, reply.error, reply.silent) == (None, "no answer within 0.5 s", True)
    assert seconds < 10


def test_a_receiver_that_answers_a_byte_now_and_then_is_given_up_on(raw: Callable[..., str]) -> None:
    def drip(connection: socket.socket) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x" * 400:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)

    reply, seconds = _seconds(lambda: send(Sender(LOOPBACK, seconds=1.0), raw(drip)))
    assert reply.error == "no answer within 1 s"
    assert seconds < 20


def test_a_failure_whose_body_drips_is_read_for_as_long_as_the_try_may_take(raw: Callable[..., str]) -> None:
    def drip(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.1)

    reply = send(Sender(LOOPBACK, seconds=3.0), raw(drip))
    assert reply.status_code == 500
    # Not all of it, which would have been kept.
    assert 0 < len(reply.answer) < 200


def test_a_receiver_that_does_not_read_is_given_up_on(raw: Callable[..., str]) -> None:
    url = raw(lambda connection: time.sleep(20))
    reply = Sender(LOOPBACK, seconds=1.0).send(url, "message-1", b"x" * (64 << 20), [SECRET])
    assert reply.error == "no answer within 1 s"


def test_a_resolver_that_hangs_is_given_up_on() -> None:
    release = threading.Event()

    def hang(_host: str, _port: int) -> Sequence[SocketAddress]:
        release.wait(20)
        return []

    reply, seconds = _seconds(lambda: send(Sender(LOOPBACK, seconds=0.5, lookup=hang), "https://slow.example.com/"))
    release.set()
    assert reply.error == "no answer within 0.5 s"
    assert seconds < 10


def test_an_endless_answer_is_not_read_to_its_end(raw: Callable[..., str]) -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)
            sent += 65536

    reply = send(Sender(LOOPBACK), raw(flood))
    assert (reply.status_code, reply.answer) == (500, "x" * KEPT_CHARACTERS)
    assert sent < 64 << 20


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n" + b"A: " + b"x" * (4 << 20), b"SSH-2.0-OpenSSH_9.6\r\n\r\n"])
def test_an_answer_that_is_not_http_is_a_failure(raw: Callable[..., str], head: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        request = b""
        # To its end: a close with something unread would reset the connection before the answer is read.
        while BODY not in request:
            request += connection.recv(65536)
        connection.sendall(head)
        connection.recv(65536)

    reply = send(Sender(LOOPBACK), raw(talk))
    assert (reply.status_code, reply.error, reply.silent) == (None, "the answer is not HTTP", True)


def test_a_receiver_that_answers_before_it_has_read_all_is_heard(raw: Callable[..., str]) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_RD)
        time.sleep(1)

    reply = Sender(LOOPBACK, seconds=5.0).send(raw(refuse), "message-1", BODY, [SECRET])
    assert reply.gone


def test_a_url_that_this_release_no_longer_reads_is_a_failure_and_no_error() -> None:
    reply = send(Sender(LOOPBACK), "gopher://hooks.example.com/")
    assert reply.status_code is None and "must begin with https://" in reply.error
    assert not reply.silent


# --- Whose failure it is ---


def _failing(error: Exception) -> Callable[[SocketAddress, float], socket.socket]:
    def fail(_address: SocketAddress, _seconds: float) -> socket.socket:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [ConnectionRefusedError(111, "Connection refused"), TimeoutError(), OSError(113, "No route to host")],
    ids=["refused", "timeout", "unreachable"],
)
def test_a_receiver_that_cannot_be_connected_to_is_silent(error: Exception) -> None:
    sender = Sender(AddressPolicy(), lookup=found("93.184.216.34"), dial=_failing(error))
    assert send(sender, "https://hooks.example.com/").silent


@pytest.mark.parametrize(
    "error",
    [
        OSError(24, "Too many open files"),
        OSError(101, "Network is unreachable"),
        RuntimeError("can't start new thread"),
    ],
    ids=["no sockets", "no network", "no threads"],
)
def test_a_receiver_that_this_side_could_not_ask_is_not_silent(error: Exception) -> None:
    sender = Sender(AddressPolicy(), lookup=found("93.184.216.34"), dial=_failing(error))
    reply = send(sender, "https://hooks.example.com/")
    assert reply.error is not None and not reply.silent


def test_a_receiver_that_answers_is_not_silent(receiver: Receiver) -> None:
    receiver.answers = [Answer(200), Answer(500)]
    assert not send(Sender(LOOPBACK), receiver.url).silent
    assert not send(Sender(LOOPBACK), receiver.url).silent
