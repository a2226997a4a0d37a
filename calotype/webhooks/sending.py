"""One try: a signed POST, and what the receiver answered."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpcore
import httpx

from calotype import __version__
from calotype.webhooks.network import (
    OWN_ERRORS,
    Deadline,
    Dial,
    GuardedBackend,
    Lookup,
    LookupTimedOut,
    NotReachable,
    dial,
    look_up,
)
from calotype.webhooks.schedule import read_retry_after
from calotype.webhooks.signing import signature
from calotype.webhooks.targets import AddressPolicy, parse_url

log = logging.getLogger(__name__)

#: What one try may take, from resolving the name to the last byte.
SEND_SECONDS = 10.0
#: Bytes that are read of an answer which is no success, and characters that are kept.
READ_BYTES, KEPT_CHARACTERS = 2048, 300
#: A failure that took longer holds threads up.
SLOW_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came of a try."""

    at: datetime
    seconds: float
    #: None: there was no answer.
    status_code: int | None = None
    #: None: the receiver has it.
    error: str | None = None
    #: The beginning of an answer that was no success.
    answer: str | None = None
    #: Seconds that the receiver asked to wait.
    retry_after: float | None = None
    #: The receiver was not asked, perhaps for a reason of this side: a refused address, a resolver, a lack of sockets.
    withheld: bool = False

    @property
    def silent(self) -> bool:
        """Whether the receiver was asked and gave no answer: the next message to it will fare alike."""
        return self.status_code is None and not self.withheld

    @property
    def slow(self) -> bool:
        """Whether it took long for nothing, and the next try may, too."""
        return self.silent or (self.status_code is None and self.seconds > SLOW_SECONDS)

    @property
    def gone(self) -> bool:
        """Whether the receiver wants nothing any more."""
        return self.status_code == 410

    def entry(self) -> dict[str, Any]:
        """As the delivery's log keeps it."""
        return {
            "at": self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "status_code": self.status_code,
            "error": self.error,
            "seconds": round(self.seconds, 3),
            "answer": self.answer,
        }


class Sender:
    """Sends messages; safe to use from several threads.

    Each try has a connection of its own. Redirects are not followed and proxies of the environment not used: either
    would lead to an address that nobody has checked.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        *,
        seconds: float = SEND_SECONDS,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup = look_up,
        dial: Dial = dial,
    ) -> None:
        self._policy = policy
        self._seconds = seconds
        self._ssl = ssl_context or httpx.create_ssl_context()
        self._lookup = lookup
        self._dial = dial

    def send(self, url: str, message_id: str, body: bytes, secrets: Sequence[str]) -> Reply:
        """POSTs a message, signed with every one of ``secrets``. What goes wrong is in the reply."""
        at, begun = datetime.now(UTC), time.monotonic()
        found: dict[str, Any]
        try:
            found = self._exchange(url, message_id, body, secrets, int(at.timestamp()))
        except Exception as exc:  # noqa: BLE001 - a delivery that cannot be sent must not end the deliverer
            found = {"error": self._explain(exc), "withheld": not _by_receiver(exc)}
        return Reply(at=at, seconds=time.monotonic() - begun, **found)

    def _exchange(
        self, url: str, message_id: str, body: bytes, secrets: Sequence[str], timestamp: int
    ) -> dict[str, Any]:
        try:
            target = parse_url(url)
        except ValueError as exc:
            raise NotReachable(f"the URL {exc}") from exc
        deadline = Deadline(self._seconds)
        backend = GuardedBackend(target.scheme, self._policy, deadline, self._lookup, self._dial)
        where = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        headers: dict[bytes | str, bytes | str] = {
            "Host": target.authority,
            "User-Agent": f"Calotype/{__version__}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Accept-Encoding": "identity",
            "Connection": "close",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secrets, message_id, timestamp, body),
        }
        with (
            httpcore.ConnectionPool(ssl_context=self._ssl, network_backend=backend) as pool,
            pool.stream("POST", where, headers=headers, content=body) as response,
        ):
            return _read(response)

    def _explain(self, exc: Exception) -> str:
        """For the tenant: what went wrong, without the addresses and paths of this machine."""
        if isinstance(exc, NotReachable):
            return str(exc)
        if isinstance(exc, TimeoutError):
            return f"no answer within {self._seconds:g} s"
        if isinstance(exc, ssl.SSLCertVerificationError):
            return f"the certificate is refused: {exc.verify_message}"
        if isinstance(exc, ssl.SSLError):
            return f"TLS failed: {exc.reason or 'the connection was closed'}"
        if isinstance(exc, OSError):
            return f"the connection failed: {exc.strerror or type(exc).__name__}"
        if isinstance(exc, httpcore.ProtocolError):
            return "the answer is not HTTP"
        log.error("a webhook could not be sent", exc_info=exc)
        return "it could not be sent; the server's log says why"


def _by_receiver(exc: Exception) -> bool:
    """Whether a failure tells something of the receiver, and not of this side alone."""
    # Those of TLS have a number that is not the system's.
    if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError):
        return not (isinstance(exc, LookupTimedOut) or exc.errno in OWN_ERRORS)
    return isinstance(exc, ssl.SSLError | httpcore.ProtocolError)


def _read(response: httpcore.Response) -> dict[str, Any]:
    status = response.status
    if 200 <= status < 300:
        return {"status_code": status}
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    return {
        "status_code": status,
        "error": _meaning(status),
        "answer": _excerpt(response),
        "retry_after": read_retry_after(headers.get(b"retry-after"), time.time()),
    }


def _meaning(status: int) -> str:
    if 300 <= status < 400:
        return f"the receiver answered {status}, and redirects are not followed; give the new URL"
    if status == 410:
        return "the receiver answered 410: it wants no more webhooks at this URL"
    return f"the receiver answered {status}; only 2xx says that it has the message"


def _excerpt(response: httpcore.Response) -> str | None:
    """The beginning of the body; what is left of it is never read."""
    data = b""
    try:
        for chunk in response.iter_stream():
            data += chunk
            if len(data) >= READ_BYTES:
                break
    except (OSError, httpcore.ProtocolError):
        # The status has been answered; what it says does not change.
        pass
    text = data[:READ_BYTES].decode("utf-8", "replace")
    kept = "".join(char if char.isprintable() else " " for char in text).strip()
    return kept[:KEPT_CHARACTERS] or None
