"""Every error as ``application/problem+json`` (RFC 9457), in one shape.

The members are ``type, title, status, detail, instance, code`` and ``errors [{loc, msg}]``; beside them
stands ``error {message, type, code, param}``, the shape that widely used clients of generation APIs read.
Errors of the domain bring their own status; this module only adds those that HTTP itself knows.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flask import Flask, Response, g, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from calotype.errors import CalotypeError, FieldError, LimitExceeded

logger = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"


class MalformedRequest(CalotypeError):
    """The request cannot be read."""

    code = "malformed_request"
    title = "Malformed request"
    status = 400


class UnsupportedMediaType(CalotypeError):
    """The request body has a content type that this call does not take."""

    code = "unsupported_media_type"
    title = "Unsupported media type"
    status = 415


@dataclass(frozen=True)
class ProblemEntry:
    """What a code stands for."""

    status: int
    #: What happened and what to do.
    meaning: str


#: Why an archive is refused; the answer names the file and the remedy.
ARCHIVES: Mapping[str, str] = {
    "archive_unreadable": "neither zip nor tar, cut off or damaged.",
    "archive_too_large": "more bytes or files than are taken, packed or unpacked.",
    "archive_too_slow": "it takes too long to unpack.",
    "encrypted_archive": "it is encrypted.",
    "zip_bomb": "it unpacks to far more than it weighs.",
    "path_escapes": "a path climbs out of the archive.",
    "link_in_archive": "it holds a link.",
    "special_file_in_archive": "it holds a device or a pipe.",
    "name_invalid": "a file's name cannot be kept.",
    "duplicate_name": "two files have the same name.",
    "file_too_large": "one file is larger than is taken.",
    "not_an_image": "a file is no image, or a damaged one.",
    "image_animated": "an image has several frames.",
    "image_too_large": "an image has more pixels than are taken.",
    "image_too_complex": "an image cannot be decoded within the limits.",
    "layout_unclear": "neither `metadata.jsonl` nor `dataset.json` nor one folder a label.",
    "metadata_invalid": "`metadata.jsonl` has a wrong line, or `dataset.json` a wrong label.",
    "missing_image": "`metadata.jsonl` or `dataset.json` names an image that is not there.",
    "too_many_labels": "more labels than are taken.",
    "empty_dataset": "there is no image in it.",
}

#: Every code that an answer can carry; `/docs` and `docs/api.md` list them.
PROBLEMS: Mapping[str, ProblemEntry] = {
    "malformed_request": ProblemEntry(400, "The body is not JSON or not a form. Mend it."),
    "unauthenticated": ProblemEntry(401, "No valid key. Send `Authorization: Bearer <key>`; ask for a new key."),
    "forbidden": ProblemEntry(403, "The key lacks the scope that the call needs; the detail names it."),
    "not_found": ProblemEntry(404, "There is no such thing, or it is not yours."),
    "method_not_allowed": ProblemEntry(405, "The path exists, the method does not; see `Allow`."),
    "conflict": ProblemEntry(409, "The present state does not allow it; the detail says what stands in the way."),
    "dataset_in_use": ProblemEntry(409, "A job that has not ended uses the dataset."),
    "upload_missing": ProblemEntry(409, "Nothing was put to the upload's URL yet."),
    "artifacts_expired": ProblemEntry(410, "The job's artifacts were deleted at their time. Make them anew: `/retry`."),
    "too_large": ProblemEntry(413, "The body is larger than the call takes; the detail names the limit."),
    "uri_too_long": ProblemEntry(414, "The path and query are longer than 4094 bytes."),
    "unsupported_media_type": ProblemEntry(415, "Wrong `Content-Type`, or a content encoding."),
    "invalid_request": ProblemEntry(422, "Wrong fields or parameters; `errors` names each with its remedy."),
    "family_unavailable": ProblemEntry(422, "This release has no code for that family and kind."),
    "unknown_model": ProblemEntry(422, "No model that you may use has that name; list them."),
    "unknown_dataset": ProblemEntry(422, "No dataset that you may use has that id or name; list them."),
    "unsupported_size": ProblemEntry(422, "The model cannot make that size; the message names the nearest."),
    "idempotency_mismatch": ProblemEntry(422, "That `Idempotency-Key` was used with another body. Use a new one."),
    **{code: ProblemEntry(422, f"The archive is refused: {meaning}") for code, meaning in ARCHIVES.items()},
    "headers_too_large": ProblemEntry(431, "A header, or all of them together, are too long."),
    "limit_exceeded": ProblemEntry(429, "A limit of your tenant is reached. Wait for `Retry-After` seconds."),
    "internal_error": ProblemEntry(500, "A defect of the server. Report the `X-Request-ID`."),
    "dependency_down": ProblemEntry(503, "Postgres or the object store cannot be reached. Try again later."),
    "disk_full": ProblemEntry(503, "The server has no room for the upload; use a presigned one."),
}

#: Codes of errors that the routing or the server raises by itself.
HTTP_CODES: Mapping[int, str] = {
    400: "malformed_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}

#: ``error.type`` by status, as clients of generation APIs group errors.
ERROR_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def problem_type(code: str) -> str:
    """The URI of a code: where `/docs` explains it."""
    return f"/docs#problem-{code}"


def problem_body(
    *, status: int, code: str, title: str, detail: str, instance: str, errors: Sequence[FieldError] = ()
) -> dict[str, Any]:
    """The members of a problem."""
    return {
        "type": problem_type(code),
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "errors": [error.as_dict() for error in errors],
        "error": {
            "message": detail,
            "type": ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
            "code": code,
            "param": _param(errors),
        },
    }


def problem(
    *,
    status: int,
    code: str,
    title: str,
    detail: str,
    errors: Sequence[FieldError] = (),
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """A problem answer. ``extra`` adds members, as RFC 9457 allows."""
    body = problem_body(
        status=status, code=code, title=title, detail=detail, instance=quote(request.path), errors=errors
    )
    body.update(extra or {})
    return Response(json.dumps(body), status=status, content_type=PROBLEM_JSON)


def _param(errors: Sequence[FieldError]) -> str | None:
    return ".".join(str(part) for part in errors[0].loc) or None if errors else None


def handle_domain_error(exc: CalotypeError) -> Response:
    """An error raised on purpose: its class says the status."""
    if exc.status >= 500:
        logger.warning("request failed", extra={"code": exc.code, "detail": exc.detail}, exc_info=exc.status == 500)
    if exc.status == 500:
        return internal_error()
    answer = problem(
        status=exc.status,
        code=exc.code,
        title=exc.title,
        detail=exc.public_detail,
        errors=getattr(exc, "errors", ()),
    )
    if isinstance(exc, LimitExceeded):
        answer.headers["Retry-After"] = str(max(1, math.ceil(exc.retry_after)))
    if exc.status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="calotype"'
    if exc.status == 503:
        answer.headers["Retry-After"] = "5"
    return answer


def handle_http_error(exc: HTTPException) -> Response:
    """An error of the routing (no such path, wrong method) or of the request reader."""
    status = exc.code or 500
    if status < 400:  # a redirect is no error
        return Response(status=status, headers=exc.get_headers())
    code = HTTP_CODES.get(status, "http_error")
    answer = problem(
        status=status,
        code=code,
        title=code.replace("_", " ").capitalize(),
        detail=_http_detail(exc),
    )
    for name, value in exc.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            answer.headers[name] = ", ".join(sorted(value.split(", "))) if name == "Allow" else value
    return answer


def _http_detail(exc: HTTPException) -> str:
    if exc.code == 404:
        return f"There is no {quote(request.path)}; /openapi.json lists every path."
    if exc.code == 405:
        allowed = ", ".join(sorted(getattr(exc, "valid_methods", None) or ()))
        return f"{request.method} is not allowed here; {quote(request.path)} takes {allowed}."
    if isinstance(exc, RequestEntityTooLarge):
        limit = request.max_content_length
        return f"The request body is larger than {limit} bytes, the most that this call takes."
    return exc.description or exc.name


def handle_broken_transfer(exc: Exception) -> Response:
    """The server found, while the body was read, that it is not framed as HTTP wants it, or that it ends early."""
    return handle_domain_error(MalformedRequest(f"The body cannot be read: {exc}."))


def handle_unexpected_error(exc: Exception) -> Response:
    """A bug. The traceback goes to the log, the request id to the client."""
    logger.error("unexpected error", exc_info=exc)
    return internal_error()


def internal_error() -> Response:
    detail = f"Something went wrong inside the server; its log tells more under request id {g.request_id}."
    return problem(status=500, code="internal_error", title="Internal error", detail=detail)


def install(app: Flask) -> None:
    """Registers the handlers; the narrowest class wins."""
    app.register_error_handler(CalotypeError, handle_domain_error)
    app.register_error_handler(HTTPException, handle_http_error)
    app.register_error_handler(ParseException, handle_broken_transfer)
    app.register_error_handler(NoMoreData, handle_broken_transfer)
    app.register_error_handler(Exception, handle_unexpected_error)
