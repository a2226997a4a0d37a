"""The project's own measurements: percentiles, verdicts, and the page that is written from runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.figures import percentile
from benchmarks.results import Report, Run, Table, Target
from benchmarks.scale import Scale


@pytest.fixture
def run() -> Run:
    report = Report(
        title="Pickup",
        method="One job after another.",
        tables=(Table(title="One idle worker", columns=("system", "p50"), rows=(("Calotype", "7.0 ms"),)),),
        targets=(
            Target(what="p50", wanted="≤ 15 ms", measured="7.0 ms", met=True),
            Target(what="p99", wanted="≤ 100 ms", measured="140.0 ms", met=False),
            Target(what="p99 of a peer", wanted="≤ 100 ms", measured="–", met=None),
        ),
        notes=("a peer was left out",),
    )
    return Run(name="pickup", scale=Scale.FULL, report=report, seconds=12.0, machine={"machine": "2 CPU cores"})


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.51, 0.99)] == [1.0, 2.0, 3.0, 4.0]
    assert percentile([float(number) for number in range(1, 101)], 0.99) == 99.0


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_run_that_was_saved_is_read_back_the_same(run: Run, tmp_path: Path) -> None:
    run.save(tmp_path)
    assert Run.load(tmp_path / "pickup.json") == run


def test_the_page_says_which_targets_were_met_missed_and_not_measured(run: Run) -> None:
    written = page.render([run])
    assert "1 of 3 met." in written
    assert "| Pickup | p50 | ≤ 15 ms | 7.0 ms | met |" in written
    assert "| Pickup | p99 | ≤ 100 ms | 140.0 ms | missed |" in written
    assert "| Pickup | p99 of a peer | ≤ 100 ms | – | not measured |" in written


def test_the_page_says_how_and_where_a_run_was_made(run: Run) -> None:
    written = page.render([run])
    assert f"`python -m benchmarks pickup` at the scale `full`, {run.date}, 12 s. 2 CPU cores." in written
    assert "- a peer was left out" in written


def test_a_bar_in_a_cell_does_not_break_the_table(run: Run) -> None:
    table = Table(title="t", columns=("a|b",), rows=(("c|d",),))
    written = page.render([Run(**{**vars(run), "report": Report(title="t", method="m", tables=(table,))})])
    assert "| a\\|b |" in written and "| c\\|d |" in written
