"""The data folder of one embedded stack: its lock, secrets, API key, and what runs."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from calotype.local.errors import StackError

#: Below this a first start would run out of room half-way: the cluster, the starter assets and some images.
MINIMUM_FREE_BYTES = 300_000_000


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """Passwords of the three services, made at the first start and kept in the data folder."""

    database_password: str
    broker_password: str
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def drawn(cls) -> Secrets:
        return cls(
            database_password=secrets.token_urlsafe(24),
            broker_password=secrets.token_urlsafe(24),
            s3_access_key=secrets.token_hex(10),
            s3_secret_key=secrets.token_urlsafe(30),
        )


@dataclass(frozen=True, kw_only=True)
class ChildRecord:
    """A process that a stack started. Pids are reused; pid and start time together are not."""

    pid: int
    #: Clock ticks between the boot of the machine and the start of the process; None where /proc is missing.
    started: int | None


@dataclass(frozen=True, kw_only=True)
class RunningStack:
    """What `stack.json` says: how to reach the stack that uses this data folder, and its processes."""

    url: str
    pid: int
    #: Whether every part works; false while the stack starts.
    ready: bool
    api_key_file: str
    children: Mapping[str, ChildRecord] = field(default_factory=dict)


class DataDir:
    """Paths and small files under one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def scratch(self) -> Path:
        """Temporary files of the stack's processes; what a killed one leaves is gone at the next start."""
        return self.path / "tmp"

    @property
    def api_key_file(self) -> Path:
        return self.path / "api-key"

    def prepare(self) -> None:
        """Make the folder, private to the user. StackError when it can't be written or its disk is full."""
        with translated_disk_errors():
            if not self.path.exists():
                self.path.mkdir(parents=True)
                # As root, Postgres runs as another account, which must pass; what is inside is private.
                self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            free = shutil.disk_usage(self.path).free
        if free < MINIMUM_FREE_BYTES:
            raise StackError(
                f"The disk of {self.path} has {free // 1_000_000} MB free; Calotype needs at least "
                f"{MINIMUM_FREE_BYTES // 1_000_000} MB to start.",
                "Free some space, or choose a folder on another disk: --data-dir DIR",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. The kernel lets go when the process ends, however it ends."""
        with translated_disk_errors():
            lock = (self.path / "lock").open("a+", encoding="utf-8")
        with lock:
            try:
                _lock_within(lock, seconds=0.5)
            except BlockingIOError as exc:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise StackError(
                    f"Another `calotype up` (pid {holder}) already uses {self.path}.",
                    "Use that one, stop it with Ctrl-C, or start another with its own --data-dir and --port.",
                ) from exc
            with translated_disk_errors():
                shutil.rmtree(self.scratch, ignore_errors=True)
                self.scratch.mkdir(mode=0o700)
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield

    def secrets(self) -> Secrets:
        """The services' secrets; made when there are none."""
        path = self.path / "secrets.json"
        with translated_disk_errors():
            if path.exists():
                return _parsed_secrets(path)
            made = Secrets.drawn()
            write_private(path, json.dumps(asdict(made), indent=2))
        return made

    def read_api_key(self) -> str | None:
        try:
            return self.api_key_file.read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None

    def write_api_key(self, key: str) -> None:
        with translated_disk_errors():
            write_private(self.api_key_file, key + "\n")

    def running(self) -> RunningStack | None:
        """The stack that runs on this folder now, or None. What a dead one left behind does not count."""
        recorded = self._recorded()
        # The lock alone would not do: a successor takes it a moment before it removes what the dead one wrote.
        if recorded is None or _start_time(recorded.pid) is None or not _is_locked(self.path / "lock"):
            return None
        return recorded

    def record(self, stack: RunningStack) -> None:
        with translated_disk_errors():
            write_private(self.path / "stack.json", json.dumps(asdict(stack), indent=2))

    def forget(self) -> None:
        (self.path / "stack.json").unlink(missing_ok=True)

    def end_leftovers(self, grace: float = 10.0) -> list[str]:
        """End what a stack left running that was killed itself. Call it under the lock. Returns the names."""
        recorded = self._recorded()
        if recorded is None:
            return []
        alive = {name: child for name, child in recorded.children.items() if _is_alive(child)}
        for child in alive.values():
            _kill(child.pid, signal.SIGINT)
        deadline = time.monotonic() + grace
        while any(_is_alive(child) for child in alive.values()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for child in alive.values():
            if _is_alive(child):
                _kill(child.pid, signal.SIGKILL)
        self.forget()
        return list(alive)

    def _recorded(self) -> RunningStack | None:
        try:
            stored: dict[str, Any] = json.loads((self.path / "stack.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            # A file cut short by a crash or a full disk says as little as no file.
            return None
        children = {name: ChildRecord(**child) for name, child in stored.pop("children").items()}
        return RunningStack(**stored, children=children)


@contextmanager
def translated_disk_errors() -> Iterator[None]:
    """Turn an OSError of the file system into a StackError that says what to do."""
    try:
        yield
    except OSError as exc:
        where = exc.filename or "the data folder"
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StackError(
                f"The disk is full: {where} could not be written.",
                "Free some space, or choose a folder on another disk: --data-dir DIR",
            ) from exc
        raise StackError(
            f"{where} could not be used: {exc.strerror or exc}.",
            "Choose a folder that you may write to: --data-dir DIR",
        ) from exc


def _parsed_secrets(path: Path) -> Secrets:
    try:
        return Secrets(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as exc:
        raise StackError(
            f"{path} is damaged; it holds the passwords of the data beside it.",
            "Restore it from a backup, or start afresh with another --data-dir.",
        ) from exc


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.touch(mode=0o600)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def child_record(pid: int) -> ChildRecord:
    """How to recognise a process again later."""
    return ChildRecord(pid=pid, started=_start_time(pid))


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # The name in parentheses may hold spaces; field 22 counts from behind it. A zombie has ended already.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def _is_alive(child: ChildRecord) -> bool:
    return child.started is not None and _start_time(child.pid) == child.started


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _lock_within(lock: IO[str], seconds: float) -> None:
    # A look by `running()` holds the lock for an instant; that is no reason to give up.
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
