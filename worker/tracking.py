"""Experiment tracking of trainings: what a job measures also goes to TensorBoard or to Weights & Biases.

The two clients work in a thread of the run's own. Whatever they do (refuse, hang, lack a server) the job neither fails
nor waits: there is one warning, and it goes on without. What a run is made of is what the job's events are made of;
a job that is released, or killed, goes on in the same run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from PIL import Image

from calotype.errors import SettingsError
from calotype.settings import Settings
from worker.signals import Interrupted

if TYPE_CHECKING:
    from calotype.jobs import Job
    from calotype.specs import JobRequest

log = logging.getLogger(__name__)

#: TensorBoard's file of a run: in checkpoints, and as an artifact. It knows its files by the middle of the name.
EVENTS_FILE: Final = "events.out.tfevents"
#: What may wait for a client that is slow; one that is slower is given up.
_MOST_WAITING: Final = 200
#: How long a checkpoint waits for that file: milliseconds, but for the first, before which the client is imported.
_STORE_SECONDS: Final = 60.0
#: How long the W&B client tries to begin a run, and to deliver what is left of it; both beside the job.
_BEGIN_SECONDS: Final = 60.0
_END_SECONDS: Final = 20.0
#: As W&B reads them: a run that failed, and one that was stopped from outside.
_FAILED, _KILLED = 1, 255


def require(settings: Settings) -> None:
    """Raises SettingsError where the tracker that the operator chose cannot be used here."""
    name = settings.tracker
    if name and importlib.util.find_spec(name) is None:
        raise SettingsError(
            f"CALOTYPE_TRACKER is {name}, and the package {name} is not installed. "
            "Install it with `pip install 'calotype[tracking]'`, or unset CALOTYPE_TRACKER."
        )
    if name == "wandb" and not settings.tracker_key:
        raise SettingsError(
            "CALOTYPE_TRACKER is wandb, and there is no key for it. "
            "Set CALOTYPE_TRACKER_KEY_FILE to a file that holds the key of the W&B account to write to."
        )


class Tracker(Protocol):
    """Where a training's measurements and images go beside its events. Nothing here raises or takes long."""

    def metrics(self, values: Mapping[str, float | None]) -> None:
        """Measurements at `values["step"]`."""

    def images(self, name: str, paths: Sequence[Path], step: int) -> None:
        """Images that belong together, e.g. one a prompt."""

    def store(self, target: Path) -> bool:
        """Writes the run so far into a file; False where it is kept elsewhere, or is lost."""


class NoTracker:
    """Nobody tracks."""

    def metrics(self, values: Mapping[str, float | None]) -> None:
        pass

    def images(self, name: str, paths: Sequence[Path], step: int) -> None:
        pass

    def store(self, target: Path) -> bool:
        return False


@contextlib.contextmanager
def tracked(settings: Settings, job: Job, spec: JobRequest, *, step: int, earlier: Path) -> Iterator[Tracker]:
    """A training's tracker while it runs, from `step` on: 0, or that of the checkpoint it goes on from. `earlier` is
    where the run's file lies, if the checkpoint has one. However the block ends, so does the run."""
    if not settings.tracker:
        yield NoTracker()
        return
    before = earlier.read_bytes() if step > 0 and earlier.is_file() else b""
    described = _described(job, spec)

    def begin(folder: Path) -> _Run:
        if settings.tracker == "tensorboard":
            return _TensorBoardRun(folder, described, step, before)
        return _WandbRun(folder, described, settings, job)

    tracker = _ThreadTracker(settings.tracker, str(job.id), begin)
    try:
        yield tracker
    except BaseException as exc:
        tracker.close(_KILLED if isinstance(exc, Interrupted) else _FAILED)
        raise
    tracker.close(0)


def _described(job: Job, spec: JobRequest) -> dict[str, Any]:
    """What was asked for. Named one by one: a request also carries secrets, as that of its webhook."""
    return {
        "job": str(job.id),
        "tenant": str(job.tenant_id),
        "family": job.family.value,
        "model": job.model,
        "input": spec.input.model_dump(mode="json"),
    }


class _Run(Protocol):
    """A client's run; used by one thread. Anything may raise, and may take its time."""

    def metrics(self, values: Mapping[str, float], step: int) -> None: ...

    def images(self, name: str, images: Sequence[Image.Image], step: int) -> None: ...

    def store(self, target: Path) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class _ThreadTracker:
    """Hands everything to a client in a thread, and gives the client up at its first failure."""

    def __init__(self, name: str, job_id: str, begin: Callable[[Path], _Run]) -> None:
        self._name, self._job_id, self._begin = name, job_id, begin
        self._waiting: queue.Queue[Callable[[_Run], None] | None] = queue.Queue(_MOST_WAITING)
        self._exit_code = 0
        self._lost = threading.Event()
        self._lock = threading.Lock()
        # A daemon: a client that hangs must not keep the worker from its end.
        self._thread = threading.Thread(target=self._work, name=f"tracking {job_id}", daemon=True)
        self._thread.start()

    def metrics(self, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None and name != "step"}
        step = int(values.get("step") or 0)
        self._put(lambda run: run.metrics(known, step))

    def images(self, name: str, paths: Sequence[Path], step: int) -> None:
        # Read now: the job's folder may be gone when their turn comes.
        try:
            contents = [path.read_bytes() for path in paths]
        except OSError as exc:
            self._give_up(str(exc))
            return
        self._put(lambda run: run.images(name, [_opened(one) for one in contents], step))

    def store(self, target: Path) -> bool:
        if self._name != "tensorboard":
            return False
        stored = threading.Event()

        def write(run: _Run) -> None:
            run.store(target)
            stored.set()

        self._put(write)
        if not self._lost.is_set() and not stored.wait(_STORE_SECONDS):
            self._give_up(f"it wrote nothing for {_STORE_SECONDS:g} s")
        return stored.is_set()

    def close(self, exit_code: int) -> None:
        """The run ends, as soon as what waits is delivered; nobody waits for that."""
        self._exit_code = exit_code
        self._put(None)

    def _put(self, action: Callable[[_Run], None] | None) -> None:
        if self._lost.is_set():
            return
        try:
            self._waiting.put_nowait(action)
        except queue.Full:
            self._give_up(f"{_MOST_WAITING} messages wait for it")

    def _work(self) -> None:
        try:
            # Its own, since the job's folder goes with the job, and a client may still be reading its files.
            with tempfile.TemporaryDirectory(prefix="calotype-tracking-", ignore_cleanup_errors=True) as folder:
                run = self._begin(Path(folder))
                while (action := self._waiting.get()) is not None and not self._lost.is_set():
                    action(run)
                run.finish(self._exit_code)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is not the job's affair
            self._give_up(f"{type(exc).__name__}: {exc}")

    def _give_up(self, reason: str) -> None:
        with self._lock:
            first = not self._lost.is_set()
            self._lost.set()
        if first:
            log.warning(
                "tracking given up, the job goes on without",
                extra={"job": self._job_id, "tracker": self._name, "reason": reason},
            )


class _TensorBoardRun:
    """Files of events. Several of one run, one after the other, are one."""

    def __init__(self, folder: Path, described: Mapping[str, Any], step: int, earlier: bytes) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._earlier = folder, earlier
        # What the file has of later steps than the checkpoint is of a worker that was lost, and will come again.
        self._writer = SummaryWriter(folder / "run", purge_step=step + 1 if earlier else None)
        if not earlier:
            # Indented: a block of code, where TensorBoard shows it.
            lines = json.dumps(described, indent=2, ensure_ascii=False).splitlines()
            self._writer.add_text("spec", "\n".join(f"    {line}" for line in lines), step)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, name: str, images: Sequence[Image.Image], step: int) -> None:
        import numpy as np

        for number, image in enumerate(images):
            self._writer.add_image(f"{name}/{number}", np.asarray(image), step, dataformats="HWC")

    def store(self, target: Path) -> None:
        self._writer.flush()
        joined = self._folder / EVENTS_FILE
        with joined.open("wb") as file:
            file.write(self._earlier)
            for part in sorted((self._folder / "run").iterdir()):
                file.write(part.read_bytes())
        shutil.move(joined, target)

    def finish(self, exit_code: int) -> None:
        self._writer.close()


class _WandbRun:
    """A run of Weights & Biases, under the job's id: with the same id it goes on."""

    def __init__(self, folder: Path, described: Mapping[str, Any], settings: Settings, job: Job) -> None:
        import wandb

        self._image = wandb.Image
        # Never by `wandb.login` or by the environment: one writes the key into the home folder, and the other
        # hands it to every process that the worker starts.
        options: dict[str, Any] = {
            "api_key": settings.tracker_key,
            "init_timeout": _BEGIN_SECONDS,
            "finish_timeout": _END_SECONDS,
            # The log of a worker is about the jobs of all tenants.
            "console": "off",
            "silent": True,
            "disable_git": True,
            "save_code": False,
        }
        if settings.tracker_url is not None:
            options["base_url"] = settings.tracker_url
        self._run = wandb.init(
            project=settings.tracker_project,
            entity=settings.tracker_entity,
            id=str(job.id),
            name=str(job.id),
            group=str(job.tenant_id),
            job_type=job.queue,
            config=dict(described),
            dir=folder,
            resume="allow",
            # Otherwise a run that is still being delivered would take in what the next job says.
            reinit="create_new",
            settings=wandb.Settings(**options),
        )

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        # Steps that the run has already, of a worker that was lost, are left out by W&B.
        self._run.log(dict(values), step=step)

    def images(self, name: str, images: Sequence[Image.Image], step: int) -> None:
        self._run.log({name: [self._image(image) for image in images]}, step=step)

    def store(self, target: Path) -> None:
        """It is kept by the server."""

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _opened(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB")
