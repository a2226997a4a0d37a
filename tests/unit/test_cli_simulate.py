"""`calotype simulate`, which needs nothing that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from calotype.cli import main

Run = Callable[..., str]

TRACE = [
    {"type": "tenant", "name": "shop"},
    {"type": "tenant", "name": "bulk"},
    {"type": "worker", "name": "w", "queues": ["diffusion.generate"]},
    *({"type": "job", "t": 0, "tenant": "bulk", "queue": "diffusion.generate", "seconds": 10} for _ in range(5)),
    {"type": "job", "t": 1, "tenant": "shop", "queue": "diffusion.generate", "seconds": 10},
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in TRACE))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def simulate(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr("sys.argv", ["calotype", "simulate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert (ended.value.code or 0) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return simulate


def test_json_holds_what_was_simulated(run: Run, trace: Path) -> None:
    found = json.loads(run(str(trace), "--json"))

    assert found["jobs"] == {"submitted": 6, "succeeded": 6}
    assert found["waits"]["by_tenant"]["shop"] == {"jobs": 1, "p50": 9.0, "p95": 9.0, "p99": 9.0, "max": 9.0}
    assert found["devices"] == {
        "count": 1, "utilisation": 1.0, "computing": 1.0, "model_loads": 0, "loading_seconds": 0.0, "gpu_seconds": 60.0
    }  # fmt: skip


def test_a_comparison_shows_both_rules_and_more_workers_shorten_the_waits(run: Run, trace: Path) -> None:
    found = json.loads(run(str(trace), "--compare", "fifo", "--json"))
    more = json.loads(run(str(trace), "--workers", "6", "--json"))

    assert found["fifo"]["waits"]["by_tenant"]["shop"]["max"] == 49.0
    assert found["fair"]["waits"]["by_tenant"]["shop"]["max"] == 9.0
    assert more["waits"]["all"]["max"] == 0.0


def test_without_a_trace_the_shipped_one_is_played_and_shown_as_tables(run: Run) -> None:
    shown = run()

    assert "tenant catalogue" in shown and "model loads" in shown and "fair part" in shown


def test_a_wrong_trace_or_rule_ends_with_a_message(run: Run, trace: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text('{"type": "job"}\n')

    assert "Line 1 of the trace" in run(str(tmp_path / "wrong.jsonl"), code=1)
    assert "fifo" in run(str(trace), "--compare", "lottery", code=2)
