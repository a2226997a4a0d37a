"""Events of a job as lines."""

from __future__ import annotations

from typing import Any

import pytest

from calotype.cli.events import event_line


def line(kind: str, **data: Any) -> str | None:
    text = event_line({"seq": 1, "type": kind, "created_at": "2026-01-31T12:00:00Z", "data": data})
    return text.plain[len("12:00:00  ") :] if text is not None else None


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        ("state", {"state": "queued", "attempt": 0}, "queued"),
        ("state", {"state": "running", "attempt": 2}, "running (attempt 2)"),
        ("state", {"state": "queued", "attempt": 1, "reason": "worker_lost"}, "queued (worker lost)"),
        (
            "state",
            {
                "state": "queued",
                "attempt": 1,
                "reason": "retry",
                "retry_in_seconds": 8.4,
                "error": {"title": "Out of memory", "detail": "11 GB"},
            },
            "queued (Out of memory: 11 GB) (again in 8 s)",
        ),
        ("metrics", {"step": 40, "loss": 0.123456789, "lr": None}, "step 40  loss 0.123457  lr None"),
        ("checkpoint", {"step": 500}, "checkpoint at step 500"),
        ("log", {"message": "[bold]latents[/] cached"}, "[bold]latents[/] cached"),
        ("log", {"message": "\x1b[2Jgone", "level": "warning"}, "�[2Jgone"),
    ],
)
def test_an_event_is_a_line_that_a_person_can_read(kind: str, data: dict[str, Any], expected: str) -> None:
    assert line(kind, **data) == expected


def test_progress_is_not_printed() -> None:
    assert line("progress", step=1, total=2) is None
