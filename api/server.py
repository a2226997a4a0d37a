"""gunicorn, configured by :mod:`calotype.settings` alone: no configuration file, no command line."""

from __future__ import annotations

import errno
import gc
import json
import logging
import resource
import socket
import sys
import uuid
from http import HTTPStatus
from types import FrameType
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.util import write_nonblock
from gunicorn.workers.gthread import ThreadWorker

from calotype.errors import CalotypeError
from calotype.settings import Settings

# The parent process only watches its children: what they need is not loaded into it.
if TYPE_CHECKING:
    from flask import Flask

    from api.services import Services

#: Statuses and codes of requests that cannot be parsed; any other is simply malformed.
UNPARSED = {LimitRequestLine: (414, "uri_too_long"), LimitRequestHeaders: (431, "headers_too_large")}
#: Connections that wait to be accepted.
BACKLOG = 2048
#: Seconds a stopping process gives the requests it is answering. Whoever waits is answered at once.
GRACEFUL_SECONDS = 30
#: Seconds an idle connection is kept for its next request; longer than usual load balancers keep theirs.
KEEPALIVE_SECONDS = 75
#: Seconds after which a client that takes nothing of what is sent to it is given up, or it would hold its thread for
#: good. Streams send something at least every 15 s.
SEND_SECONDS = 60
#: How long a thread that computes keeps another from going on; Python's own 5 ms are paid at each of the dozen returns
#: from a socket that a submission makes, beside one busy thread.
SWITCH_SECONDS = 0.001

#: Open files beside those of clients: the database's, the store's, uploads on their way to disk.
SPARE_FILES = 256

logger = logging.getLogger(__name__)


class AddressUnavailable(CalotypeError):
    """The API cannot listen on its address."""

    code = "address_unavailable"
    title = "Address unavailable"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; bound here since gunicorn tries for five seconds and names no remedy.

    Raises:
        AddressUnavailable: says why and what to do.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The connections inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SEND_SECONDS * 1000)
        listener.bind(address)
    except OSError as exc:
        raise AddressUnavailable(f"cannot listen on {host}:{port}: {_remedy(exc)}") from exc
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


def allow_connections(wanted: int) -> int:
    """Raises this process' limit of open files, which its children inherit; gives how many connections fit.

    Shells allow 1,024 files, and much more to whoever asks. A server process does not survive an accept that fails for
    want of one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    fit = max(1, min(wanted, files - SPARE_FILES))
    if fit < wanted:
        logger.warning("too few open files allowed for all connections", extra={"files": hard, "connections": fit})
    return fit


def _remedy(exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        return "another process does. Stop it, or choose another port (CALOTYPE_PORT, `calotype up --port`)."
    if exc.errno == errno.EACCES:
        return "ports below 1024 need privileges. Choose another port (CALOTYPE_PORT)."
    return f"{exc.strerror or exc}. Check CALOTYPE_BIND_HOST and CALOTYPE_PORT."


class ServerLog(Logger):  # type: ignore[misc]
    """gunicorn's own messages, through our log handlers; the access log is that of :mod:`api.observe`."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("api.server")
        self.access_log = logging.getLogger("api.server.access")
        self.access_log.disabled = True

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if isinstance(sys.exc_info()[1], TimeoutError):
            # It took nothing for SEND_SECONDS.
            self.error_log.debug("the client is gone")
        else:
            super().exception(msg, *args, **kwargs)


class Worker(ThreadWorker):  # type: ignore[misc]
    """A gthread worker whose long polls and streams end as soon as it is told to stop."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        here = _services_of(self)
        if here is not None:
            here.stop()
        super().handle_exit(sig, frame)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that is no HTTP, which never reaches the application, as a problem too."""
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        self.log.warning("request is no HTTP", extra={"client": (addr or ("",))[0], "detail": str(exc)})
        try:
            write_nonblock(client, _refusal(exc))
        except OSError:
            self.log.debug("the client is gone")


def _refusal(exc: ParseException) -> bytes:
    """The whole answer to a request that could not be parsed."""
    from api.errors import PROBLEM_JSON, problem_body

    status, code = UNPARSED.get(type(exc), (400, "malformed_request"))
    reason = HTTPStatus(status).phrase
    body = problem_body(
        status=status, code=code, title=reason.capitalize(), detail=f"The request is no HTTP: {exc}.", instance="/"
    )
    data = json.dumps(body).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: {PROBLEM_JSON}\r\n"
        f"Content-Length: {len(data)}\r\nX-Request-ID: {uuid.uuid4()}\r\n\r\n"
    )
    return head.encode("ascii") + data


def _close(_arbiter: Any, worker: ThreadWorker) -> None:
    """Hook of gunicorn, run in a worker process that ends."""
    here = _services_of(worker)
    if here is not None:
        here.close()


def _services_of(worker: ThreadWorker) -> Services | None:
    """The services of the application that ``worker`` has loaded."""
    if worker.app.callable is None:
        return None
    from api.services import EXTENSION

    found: Services = worker.app.callable.extensions[EXTENSION]
    return found


class Server(BaseApplication):  # type: ignore[misc]
    """Serves :func:`api.app.create_app` on a socket that listens already."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.settings = settings
        self.listener = listener
        super().__init__()

    def load_config(self) -> None:
        options = {
            "bind": f"fd://{self.listener.fileno()}",
            "workers": self.settings.api_workers,
            "worker_class": Worker,
            # Made when they are needed. A client that waits holds one, which costs about 60 kB; api.turns bounds how
            # many of them work.
            "threads": self.settings.api_threads + self.settings.api_waiters,
            # Idle connections count: were this not above the threads, they would starve requests.
            "worker_connections": allow_connections(self.settings.api_connections),
            "keepalive": KEEPALIVE_SECONDS,
            "graceful_timeout": GRACEFUL_SECONDS,
            # A process whose main loop stands still for this long is replaced; threads do not count.
            "timeout": 60,
            "accesslog": None,
            "logger_class": ServerLog,
            "proc_name": "calotype-api",
            "control_socket_disable": True,
            "worker_exit": _close,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        # In the worker process, after the fork: connections and threads do not survive one.
        from api.app import create_app

        app = create_app(self.settings)
        # All that is loaded stays: without this the collector goes through it again and again.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(SWITCH_SECONDS)
        return app
