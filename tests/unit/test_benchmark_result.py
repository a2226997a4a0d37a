"""From measurements to what is claimed: the matrix, the floor, the caveats, the words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from calotype.errors import JobFailed
from worker.benchmark.floor import DATA_SHEET, Peak
from worker.benchmark.matrix import decision_matrix
from worker.benchmark.measure import BatchRun, Measurement
from worker.benchmark.result import Scoring, caveats, distances, failed_contender, measured_contender
from worker.benchmark.verdict import in_short, number, seconds, winner

ALL = frozenset({"latency", "throughput", "memory", "fd", "kid"})
SCORING = Scoring(metrics=ALL, gpu_hour_usd=3.6, backbone="EfficientNet-lite0")
PEAK = Peak(flops=1e12, source=DATA_SHEET)
CONFIGURATION = {"model": "m@1", "adapters": []}


def measurement(*, call: float = 0.5, flops: int = 10**9, runs: list[BatchRun] | None = None) -> Measurement:
    return Measurement(
        load_seconds=2.0,
        first_image_seconds=1.0,
        flops_per_image=flops,
        batches=runs or [BatchRun(batch_size=1, seconds=[call] * 5), BatchRun(batch_size=8, seconds=[4 * call] * 5)],
        load_peak_bytes=3_000_000,
        memory_kind="cuda_allocated",
    )


def entry(name: str = "one", shift: float = 0.0, **changes: Any) -> dict[str, Any]:
    random = np.random.RandomState(3)
    generated, real = random.normal(shift, 1.0, (60, 6)), random.normal(0.0, 1.0, (60, 6))
    return measured_contender(name, CONFIGURATION, measurement(**changes), SCORING, PEAK, generated, real)


def failed(name: str = "broken") -> dict[str, Any]:
    failure = JobFailed("model_unavailable", "The model is gone", "No model m@1 any more.", retryable=False)
    return failed_contender(name, CONFIGURATION, failure)


def values(matrix: dict[str, Any], column: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = matrix["columns"][column]["values"]
    return found


def test_distances_are_named_after_the_backbone_and_never_fid() -> None:
    made = entry()
    matrix = decision_matrix([made], ALL, SCORING.backbone)
    assert made["fd"]["name"] == "FD-EfficientNet-lite0"
    assert made["kid"]["name"] == "KID-EfficientNet-lite0"
    assert (made["fd"]["n_generated"], made["fd"]["n_real"]) == (60, 60)
    assert "fid" not in json.dumps([made, matrix]).lower()


def test_the_matrix_has_a_column_a_contender_and_says_which_direction_is_better() -> None:
    matrix = decision_matrix([entry("one"), entry("two", call=0.25), failed()], ALL, SCORING.backbone)
    assert [column["name"] for column in matrix["columns"]] == ["one", "two", "broken"]
    assert {row["key"]: row["better"] for row in matrix["rows"]}["images_per_second"] == "higher"
    assert all(row["label"] and row["about"] and row["better"] in {"lower", "higher"} for row in matrix["rows"])
    one, two = values(matrix), values(matrix, 1)
    assert (one["latency_p50_seconds"], two["latency_p50_seconds"]) == (0.5, 0.25)
    assert one["images_per_second"] == 4.0
    assert one["cold_start_seconds"] == 3.0
    assert one["peak_memory_mb"] == 3.0
    assert one["cost_per_million_usd"] == 250.0


def test_a_failed_contender_has_no_number_at_all() -> None:
    matrix = decision_matrix([entry(), failed()], ALL, SCORING.backbone)
    assert matrix["columns"][1]["status"] == "failed"
    assert set(values(matrix, 1).values()) == {None}


def test_only_what_was_asked_for_is_in_the_matrix() -> None:
    scoring = Scoring(metrics=frozenset({"kid"}), gpu_hour_usd=None, backbone="X")
    features = np.random.RandomState(0).normal(size=(9, 4))
    made = measured_contender("one", CONFIGURATION, measurement(), scoring, None, features, features)
    matrix = decision_matrix([made], scoring.metrics, "X")
    assert [row["key"] for row in matrix["rows"]] == ["kid"]
    assert (made["fd"], made["memory"], made["latency"], made["cost_per_million_usd"]) == (None, None, [], None)


def test_a_time_below_the_arithmetic_floor_is_an_error_of_measurement_and_not_speed() -> None:
    made = entry(call=0.0005)
    batch = made["latency"][0]
    assert batch["floor_seconds"] == pytest.approx(1e-3)
    assert batch["status"] == "below_floor"
    assert "error of measurement" in batch["error"]
    matrix = decision_matrix([made], ALL, SCORING.backbone)
    assert values(matrix)["latency_p50_seconds"] is None
    assert values(matrix).get("images_per_second") is None
    assert made["cost_per_million_usd"] is None
    assert any("error of measurement" in sentence for sentence in caveats([made], 6))


def test_a_time_above_the_floor_is_believed() -> None:
    assert [batch["status"] for batch in entry()["latency"]] == ["measured", "measured"]


def test_a_batch_size_that_failed_is_named_with_its_reason() -> None:
    failure = JobFailed("out_of_memory", "Out of memory", "Does not fit.", retryable=False)
    runs = [BatchRun(batch_size=1, seconds=[0.5] * 3), BatchRun(batch_size=64, failure=failure)]
    made = entry(runs=runs)
    assert made["latency"][1]["status"] == "failed"
    assert "one: batch size 64: Does not fit." in caveats([made], 6)
    assert "p50" not in made["latency"][1]


def test_an_estimated_p99_is_marked_and_decides_nothing() -> None:
    contenders = [entry("one"), entry("two", call=0.1)]
    matrix = decision_matrix(contenders, ALL, SCORING.backbone)
    row = next(row for row in matrix["rows"] if row["key"] == "latency_p99_seconds")
    assert matrix["columns"][0]["notes"]["latency_p99_seconds"] == "batch size 1, estimate from 5 calls"
    assert winner(row, matrix["columns"], contenders) is None
    assert any("p99 from fewer than 1000 calls" in sentence for sentence in caveats(contenders, 6))


def test_a_winner_needs_more_than_five_percent() -> None:
    for call, best in ((0.51, None), (0.6, "one"), (0.1, "two")):
        contenders = [entry("one"), entry("two", call=call)]
        matrix = decision_matrix(contenders, ALL, SCORING.backbone)
        row = next(row for row in matrix["rows"] if row["key"] == "latency_p50_seconds")
        assert winner(row, matrix["columns"], contenders) == best


def test_memory_needs_thirty_percent_to_win() -> None:
    for peak, best in ((3_300_000, None), (6_000_000, "one")):
        runs = [BatchRun(batch_size=1, seconds=[0.5] * 3, peak_bytes=peak)]
        contenders = [entry("one"), entry("two", runs=runs)]
        matrix = decision_matrix(contenders, ALL, SCORING.backbone)
        row = next(row for row in matrix["rows"] if row["key"] == "peak_memory_mb")
        assert winner(row, matrix["columns"], contenders) == best


def test_times_that_scatter_widely_decide_nothing() -> None:
    contenders = [entry("one"), entry("two", runs=[BatchRun(batch_size=1, seconds=[0.1] * 4 + [2.0])])]
    matrix = decision_matrix(contenders, ALL, SCORING.backbone)
    for row in matrix["rows"]:
        if row["key"] in {"latency_p50_seconds", "images_per_second", "cost_per_million_usd"}:
            assert winner(row, matrix["columns"], contenders) is None
    assert any("scatter too widely" in sentence for sentence in in_short({"contenders": contenders}))


def test_overlapping_intervals_of_kid_name_no_winner() -> None:
    near, far = entry("near", shift=0.02), entry("far", shift=1.5)
    for contenders, best in (([near, entry("same", shift=0.03)], None), ([far, near], "near")):
        matrix = decision_matrix(contenders, ALL, SCORING.backbone)
        row = next(row for row in matrix["rows"] if row["key"] == "kid")
        assert winner(row, matrix["columns"], contenders) == best
    assert "cannot be told apart in quality" in in_short({"contenders": [near, entry("same", shift=0.03)]})[0]
    assert "near makes the images closest" in in_short({"contenders": [far, near]})[0]


def test_few_samples_and_restless_machines_are_told() -> None:
    restless = entry(runs=[BatchRun(batch_size=1, seconds=[0.1, 0.1, 0.1, 0.1, 2.0])])
    told = " ".join(caveats([restless, failed()], 1280))
    assert "biased upwards" in told
    assert "scatter widely" in told
    assert "broken could not be measured: No model m@1 any more." in told


def test_two_samples_make_no_interval_and_the_result_is_json_all_the_same() -> None:
    two = np.random.RandomState(0).normal(size=(2, 4))
    found = distances(two, two + 1.0, SCORING)
    assert found["kid"]["ci_low"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.09123, "0.0912"), (35.0, "35.0"), (412, "412"), (1234567.8, "1,234,568")]
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_times_below_a_second_are_milliseconds() -> None:
    assert (seconds(0.2143), seconds(2.5)) == ("214 ms", "2.50 s")
