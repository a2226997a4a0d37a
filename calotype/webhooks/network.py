"""Connections to receivers: resolved once, every address checked, all within one deadline.

The timeouts of an HTTP library are for one operation each; a receiver that sends a byte now and then would hold a
connection for ever. And a name that is resolved for the check and again for the connection may give two answers, the
second one an address of this network (DNS rebinding). So the library connects through this.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import httpcore

from calotype.webhooks.targets import AddressPolicy

#: Of a resolved address: family and what a socket of it connects to.
SocketAddress = tuple[int, tuple[Any, ...]]
Lookup = Callable[[str, int], Sequence[SocketAddress]]
Dial = Callable[[SocketAddress, float], socket.socket]


#: What the system answers when it is this machine that can make no connection.
OWN_ERRORS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.ENETUNREACH}
    | {errno.EACCES, errno.EPERM}
)
#: One answer for all of it: what names of this network stand for is nobody's business.
UNRESOLVED = "the host does not resolve to public addresses"


class NotReachable(Exception):
    """A connection that must not be made, or cannot be; its text is for the tenant."""


class LookupTimedOut(TimeoutError):
    """A resolver that took all of the time: perhaps this side's."""


class Deadline:
    """A point in time that a whole exchange must not pass."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then. Raises TimeoutError when it is past."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def look_up(host: str, port: int) -> list[SocketAddress]:
    """What the system's resolver says. Raises OSError."""
    return [(found[0], found[4]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def dial(address: SocketAddress, seconds: float) -> socket.socket:
    """A connection to an address, without asking a resolver again. Raises OSError."""
    family, place = address
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(place)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        made.close()
        raise
    return made


class GuardedBackend(httpcore.NetworkBackend):
    """Connects one exchange; for `httpcore`."""

    def __init__(
        self, scheme: str, policy: AddressPolicy, deadline: Deadline, lookup: Lookup = look_up, dial: Dial = dial
    ) -> None:
        self._scheme = scheme
        self._policy = policy
        self._deadline = deadline
        self._lookup = lookup
        self._dial = dial

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A stream to the first checked address that answers.

        Raises:
            NotReachable: there is no address, or one among them is refused.
            OSError: none answers.
        """
        failure: OSError | None = None
        for address in self._checked(host, port):
            try:
                return GuardedStream(self._dial(address, self._deadline.left()), self._deadline)
            except OSError as exc:
                # What one address says of the receiver outweighs that another cannot be reached from here.
                if failure is None or failure.errno in OWN_ERRORS:
                    failure = exc
        raise failure or NotReachable(UNRESOLVED)

    def _checked(self, host: str, port: int) -> Sequence[SocketAddress]:
        try:
            found: Sequence[SocketAddress] = within(self._deadline, lambda: self._lookup(host, port))
            addresses = [ipaddress.ip_address(str(place[0]).partition("%")[0]) for _, place in found]
        except (OSError, UnicodeError, ValueError) as exc:
            if isinstance(exc, TimeoutError):
                raise LookupTimedOut from exc
            raise NotReachable(UNRESOLVED) from exc
        if not all(self._policy.permits(address, self._scheme) for address in addresses):
            raise NotReachable(UNRESOLVED)
        return found


class GuardedStream(httpcore.NetworkStream):
    """A socket on which no operation outlasts the deadline of the exchange."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._socket = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(self._deadline.left())
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        while buffer:
            self._socket.settimeout(self._deadline.left())
            try:
                buffer = buffer[self._socket.send(buffer) :]
            except TimeoutError:
                raise
            except OSError as exc:
                # A receiver may answer and close before it has read all: `httpcore` then looks for the answer.
                raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(self._deadline.left())
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        return GuardedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._socket if info == "socket" else None


def within(deadline: Deadline, action: Callable[[], Any]) -> Any:
    """What ``action`` gives, or TimeoutError at the deadline; it then goes on in its thread, heard by nobody.

    A resolver cannot be interrupted, and may take longer than a whole exchange may.
    """
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(action())
        except Exception as exc:  # noqa: BLE001 - handed to the caller
            answer.set_exception(exc)

    threading.Thread(target=run, name="lookup", daemon=True).start()
    return answer.result(deadline.left())
