"""Request ids, access log lines and request metrics: what is said about every request, whatever it was."""

from __future__ import annotations

import logging
import re
import time
from contextlib import ExitStack
from urllib.parse import quote

from flask import Flask, Response, g, request
from prometheus_client import CollectorRegistry, Counter, Histogram

from calotype import log
from calotype.ids import new_id

logger = logging.getLogger("api.access")

#: A client's own request id is kept when it is short and harmless in a log line.
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
#: Seconds. The long ones are long polls.
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def install(app: Flask, registry: CollectorRegistry) -> None:
    """Adds the hooks to ``app`` and the request metrics to ``registry``."""
    requests = Counter("calotype_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry)
    latency = Histogram(
        "calotype_http_request_seconds",
        "Time from a request's arrival to its answer's first byte.",
        ["method", "route"],
        buckets=LATENCY_BUCKETS,
        registry=registry,
    )

    def begin() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if SANE_REQUEST_ID.fullmatch(given) else str(new_id())
        g.began = time.perf_counter()
        g.log_context = ExitStack()
        g.log_context.enter_context(log.context(request_id=g.request_id))

    def report(response: Response) -> Response:
        response.headers["X-Request-ID"] = g.request_id
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        # Answers are a tenant's own and change: nothing between may keep them, unless a view said otherwise.
        response.headers.setdefault("Cache-Control", "no-store")
        seconds = time.perf_counter() - g.began
        method = _method()
        requests.labels(method, _route(), str(response.status_code)).inc()
        latency.labels(method, _route()).observe(seconds)
        _log_line(response, seconds)
        return response

    def end(_exc: BaseException | None) -> None:
        stack = g.pop("log_context", None)
        if stack is not None:
            stack.close()

    app.before_request(begin)
    app.after_request(report)
    app.teardown_request(end)


def _route() -> str:
    """The path's template, not the path: one series a call."""
    return request.url_rule.rule if request.url_rule is not None else "unmatched"


def _method() -> str:
    known = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
    return request.method if request.method in known else "other"


def _log_line(response: Response, seconds: float) -> None:
    principal = g.get("principal")
    # The query string stays out: it is the client's text.
    extra = {
        "method": request.method,
        "path": quote(request.path),
        "route": _route(),
        "status": response.status_code,
        "ms": round(seconds * 1000, 1),
        "bytes": response.content_length,
        "client": request.remote_addr,
    }
    if principal is not None:
        extra |= {"tenant": principal.tenant_name, "key": str(principal.key_id)}
    quiet = _route() in {"/healthz", "/readyz", "/metrics"} and response.status_code < 400
    logger.log(logging.DEBUG if quiet else logging.INFO, "request", extra=extra)
