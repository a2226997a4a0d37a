"""Logs: JSON lines for machines, short lines for people; the same words in both.

``logger.info("claimed", extra={"job": …, "epoch": …})`` puts the extras beside the message. Context that a whole
thread shares (request id, job) is set with :func:`context`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from calotype.settings import Settings

_context: ContextVar[dict[str, Any]] = ContextVar("calotype_log_context", default={})  # noqa: B039 - never mutated
#: What a log record has by itself; anything else came in through ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


@contextmanager
def context(**values: Any) -> Iterator[None]:
    """Adds ``values`` to every record logged in this thread inside the block."""
    token = _context.set({**_context.get(), **{key: str(value) for key, value in values.items()}})
    try:
        yield
    finally:
        _context.reset(token)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    own = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    return {**_context.get(), **own}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time, level, logger, message``, then context and extras."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """``12:00:01 info  worker.drain  claimed  job=… epoch=2``"""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        extras = "".join(f" {key}={value}" for key, value in _extras(record).items())
        line = f"{clock} {record.levelname.lower():<7} {record.name}  {record.getMessage()} {extras}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure(settings: Settings) -> None:
    """Sends all logs of the process to standard error in the chosen format. Replaces earlier handlers."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # These print a line for each request they make, secrets in URLs included.
    for chatty in ("httpx", "httpcore", "urllib3", "kombu", "amqp", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
