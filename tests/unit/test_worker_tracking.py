"""Trackers of trainings: what TensorBoard and W&B read of a run, and that nothing they do reaches the job.

W&B's client works offline here: it writes the records that it would send, and nothing is sent.
"""

from __future__ import annotations

import importlib.util
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from calotype.errors import SettingsError
from calotype.jobs import Family
from calotype.settings import Settings
from worker import tracking
from worker.signals import CancelRequested

KEY = "k" * 40


def spec() -> Any:
    asked = {"steps": 6, "validation_prompts": ["a red one"]}
    return SimpleNamespace(
        input=SimpleNamespace(model_dump=lambda mode: asked),
        webhook=SimpleNamespace(secret="whsec_hidden"),
        metadata={"note": "hidden"},
    )


def job() -> Any:
    return SimpleNamespace(
        id="0190-job", tenant_id="0190-tenant", family=Family.DIFFUSION, model="tiny@1", queue="diffusion.train"
    )


def tracked(settings: Settings, step: int = 0, earlier: Path = Path("nowhere")) -> Any:
    return tracking.tracked(settings, job(), spec(), step=step, earlier=earlier)


def wait_for_the_thread() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("tracking "):
            thread.join(120)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    wait_for_the_thread()


def read(file: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(file)).Reload()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (6, 4), "red").save(path)
    return path


TENSORBOARD = Settings(tracker="tensorboard")


def test_without_a_tracker_nothing_is_written(tmp_path: Path) -> None:
    with tracked(Settings()) as tracker:
        tracker.metrics({"step": 1, "loss": 0.5})
        assert not tracker.store(tmp_path / "events")
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_metrics_images_and_what_was_asked_for(tmp_path: Path, picture: Path) -> None:
    file = tmp_path / tracking.EVENTS_FILE
    with tracked(TENSORBOARD) as tracker:
        tracker.metrics({"step": 1, "loss": 0.5, "penalty": None})
        tracker.metrics({"step": 2, "loss": 0.25, "penalty": 3.0})
        tracker.images("validation", [picture, picture], 2)
        assert tracker.store(file)
    run = read(file)
    assert [(one.step, one.value) for one in run.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
    assert [(one.step, one.value) for one in run.Scalars("penalty")] == [(2, 3.0)]
    assert [(one.step, one.width, one.height) for one in run.Images("validation/1")] == [(2, 6, 4)]
    (text,) = run.Tensors("spec/text_summary")
    asked = text.tensor_proto.string_val[0].decode()
    assert "a red one" in asked and "tiny@1" in asked
    assert "hidden" not in asked


def test_a_run_goes_on_from_its_checkpoint_and_what_came_after_it_counts_once(tmp_path: Path) -> None:
    lost, whole = tmp_path / "lost.tfevents", tmp_path / "whole.tfevents"
    with tracked(TENSORBOARD) as tracker:
        for step in (1, 2, 3):
            tracker.metrics({"step": step, "loss": float(step)})
        tracker.store(lost)
    with tracked(TENSORBOARD, step=2, earlier=lost) as tracker:
        for step in (3, 4):
            tracker.metrics({"step": step, "loss": step * 10.0})
        tracker.store(whole)
    losses = [(one.step, one.value) for one in read(whole).Scalars("loss")]
    assert losses == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_training_that_begins_again_begins_its_run_again(tmp_path: Path) -> None:
    earlier, fresh = tmp_path / "earlier.tfevents", tmp_path / "fresh.tfevents"
    with tracked(TENSORBOARD) as tracker:
        tracker.metrics({"step": 1, "loss": 1.0})
        tracker.store(earlier)
    with tracked(TENSORBOARD, step=0, earlier=earlier) as tracker:
        tracker.metrics({"step": 1, "loss": 2.0})
        tracker.store(fresh)
    assert [one.value for one in read(fresh).Scalars("loss")] == [2.0]


class Run:
    """A client that notes how its run ended, and may fail or hang."""

    def __init__(self) -> None:
        self.exit_codes: list[int] = []
        self.measured: list[int] = []
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()

    def metrics(self, values: Any, step: int) -> None:
        self.hangs.wait(60)
        if self.fails:
            raise ConnectionError("no such server")
        self.measured.append(step)

    def images(self, name: str, images: Any, step: int) -> None: ...

    def store(self, target: Path) -> None:
        target.write_bytes(b"stored")

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run()
    monkeypatch.setattr(tracking, "_TensorBoardRun", lambda *arguments: made)
    return made


@pytest.mark.parametrize(
    ("ending", "exit_code"), [(None, 0), (ValueError("bad"), 1), (CancelRequested(), 255)], ids=["well", "badly", "cut"]
)
def test_a_run_is_finished_however_the_job_ends(run: Run, ending: BaseException | None, exit_code: int) -> None:
    try:
        with tracked(TENSORBOARD) as tracker:
            tracker.metrics({"step": 1})
            if ending is not None:
                raise ending
    except (ValueError, CancelRequested) as exc:
        assert exc is ending
    wait_for_the_thread()
    assert (run.measured, run.exit_codes) == ([1], [exit_code])


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [cast(Any, record).reason for record in caplog.records if record.name == "worker.tracking"]


def test_a_client_that_fails_is_given_up_with_one_warning(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run.fails = True
    with tracked(TENSORBOARD) as tracker:
        tracker.metrics({"step": 1})
        wait_for_the_thread()
        for step in range(1000):
            tracker.metrics({"step": step})
        assert not tracker.store(tmp_path / "events")
    assert warnings_of(caplog) == ["ConnectionError: no such server"]


def test_a_client_that_hangs_holds_up_neither_steps_nor_checkpoints(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_STORE_SECONDS", 0.1)
    run.hangs.clear()
    with tracked(TENSORBOARD) as tracker:
        tracker.metrics({"step": 1})
        assert not tracker.store(tmp_path / "events")
        for step in range(1000):
            tracker.metrics({"step": step})
    assert warnings_of(caplog) == ["it wrote nothing for 0.1 s"]
    run.hangs.set()


def test_a_client_that_is_too_slow_is_given_up(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.hangs.clear()
    with tracked(TENSORBOARD) as tracker:
        for step in range(1000):
            tracker.metrics({"step": step})
    run.hangs.set()
    wait_for_the_thread()
    assert warnings_of(caplog) == ["200 messages wait for it"]
    assert len(run.measured) <= 1


def records_of(file: Path) -> Iterator[bytes]:
    """A log in the format of LevelDB: blocks of 32 KiB, pieces with a checksum, a length and a kind (whole, first,
    middle, last); before the first, seven bytes of W&B's own."""
    content, place, pieces = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place < len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield pieces
            pieces = b""


def test_wandb_gets_the_run_under_the_jobs_id_and_its_key_is_written_nowhere(
    tmp_path: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # The client reads its variables once a process, and libraries that other tests load have made it do so already.
    wandb.teardown()
    folder = tmp_path / "kept"
    folder.mkdir()
    settings = Settings(tracker="wandb", tracker_key=KEY, tracker_project="brands", tracker_url="http://127.0.0.1:9")
    run = tracking._WandbRun(folder, tracking._described(job(), spec()), settings, job())
    run.metrics({"loss": 0.5}, 1)
    run.metrics({"loss": 0.25}, 2)
    run.images("validation", [tracking._opened(picture.read_bytes())], 2)
    run.finish(0)

    (file,) = folder.rglob("*.wandb")
    loss, config, name = [], "", ()
    for content in records_of(file):
        record = Record.FromString(content)
        if record.HasField("run"):
            name = (record.run.run_id, record.run.display_name, record.run.project, record.run.run_group)
            config += str(record.run.config)
        for item in record.history.item:
            if "loss" in (item.key, *item.nested_key):
                loss.append(float(item.value_json))
    assert name == ("0190-job", "0190-job", "brands", "0190-tenant")
    assert "a red one" in config and "hidden" not in config
    assert loss == [0.5, 0.25]
    assert len(list(folder.rglob("validation*.png"))) == 1
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(KEY.encode() in content for content in written)


def test_a_tracker_without_its_package_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"tensorboard is not installed.*pip install 'calotype\[tracking\]'"):
        tracking.require(TENSORBOARD)
    tracking.require(Settings())


def test_wandb_without_a_key_is_refused() -> None:
    with pytest.raises(SettingsError, match="CALOTYPE_TRACKER_KEY_FILE"):
        tracking.require(Settings(tracker="wandb"))
    tracking.require(Settings(tracker="wandb", tracker_key=KEY))
