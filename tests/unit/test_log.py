"""Log lines: the same words for machines and for people."""

from __future__ import annotations

import json
import logging

from calotype import log


def _record(**extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "worker.drain", "levelno": 20, "levelname": "INFO", "msg": "claimed", **extra}
    )


def test_a_json_line_has_message_context_and_extras() -> None:
    with log.context(request_id="r1"):
        line = json.loads(log.JsonFormatter().format(_record(job="j1", epoch=2)))
    assert line["message"] == "claimed" and line["level"] == "info"
    assert (line["request_id"], line["job"], line["epoch"]) == ("r1", "j1", 2)


def test_context_ends_with_its_block() -> None:
    with log.context(request_id="r1"):
        pass
    assert "request_id" not in json.loads(log.JsonFormatter().format(_record()))


def test_a_text_line_is_one_line() -> None:
    assert log.TextFormatter().format(_record(job="j1")).endswith("worker.drain  claimed  job=j1")
