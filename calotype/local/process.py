"""Child processes of the embedded stack: started with their own log, ended by pid, never left behind."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from calotype.local.errors import StackError

#: A log larger than this is set aside as `<name>.1` at the next start of its process.
LOG_BYTES = 20_000_000
_PR_SET_PDEATHSIG = 1
# Loaded in the parent: between fork and exec only calls that need no allocation and no lock are safe.
_IS_LINUX = sys.platform == "linux"
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, kw_only=True)
class Account:
    """An operating system account that a child runs as, when the parent is root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Command:
    """How one child is started and stopped. Secrets travel in ``environment`` or files, never in ``argv``."""

    name: str
    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    account: Account | None = None
    #: Asks for a clean end.
    stop_signal: signal.Signals = signal.SIGTERM
    #: Seconds between the stop signal and SIGKILL.
    grace_seconds: float = 10.0


class Process:
    """One running child, in a session of its own, so that Ctrl-C in a terminal reaches only the parent."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.started_at = time.monotonic()
        self._popen = _spawn(command)
        self._swept = False

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.started_at

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative signal number when a signal ended it."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child and everything it started; no effect once it has ended."""
        if self._popen.poll() is not None:
            return
        try:
            if number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT):
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None when it still runs after ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout=max(timeout, 0.0))
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace: float | None = None) -> int:
        """Ask for a clean end, wait for at most the grace, then kill. Returns the exit code."""
        self.signal(self.command.stop_signal)
        if self.wait(self.command.grace_seconds if grace is None else grace) is None:
            self.signal(signal.SIGKILL)
        code = self._popen.wait()
        self._kill_leftovers()
        return code

    def log_tail(self, lines: int = 15) -> str:
        return tail(self.command.log, lines)

    def _kill_leftovers(self) -> None:
        # The child led its own process group: whatever it started and did not take along ends here.
        # Once only: later the number may belong to someone else.
        if self._swept:
            return
        self._swept = True
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def _spawn(command: Command) -> subprocess.Popen[bytes]:
    account = command.account
    parent = os.getpid()
    stop_signal = command.stop_signal

    def die_with_parent() -> None:
        # Runs after the change of user, which would clear the request. Elsewhere than on Linux there is no such
        # request; there the next start ends what a killed stack left behind.
        if _IS_LINUX:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(127)

    try:
        command.log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(command.log)
        with command.log.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - our own programs, arguments as a list
                list(command.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(command.environment),
                cwd=command.cwd,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
    except OSError as exc:
        raise StackError(
            f"{command.name} could not be started: {exc.strerror or exc} ({exc.filename or command.argv[0]})",
            "Check that the file exists, may be executed, and that the disk has room for the log.",
        ) from exc


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, or an empty string when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16_384))
            text = log.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def free_port() -> int:
    """A loopback TCP port that nothing listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def port_problem(port: int, host: str = "127.0.0.1") -> str | None:
    """Why no server could listen there now, or None. What lingers in TIME_WAIT does not count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return "is taken by another program"
            if exc.errno == errno.EACCES:
                return "may not be used by an ordinary user"
            return f"cannot be used: {exc.strerror or exc}"
        except OverflowError:
            return "does not exist; ports end at 65535"
    return None


def wait_until_ready(process: Process, ready: Callable[[], bool], timeout: float) -> None:
    """Return when ``ready()``; StackError with the end of the log when the process ends or time runs out."""
    deadline = time.monotonic() + timeout
    while not ready():
        code = process.exit_code
        if code is not None:
            raise _not_ready(process, f"ended at once with exit code {code}")
        if time.monotonic() > deadline:
            raise _not_ready(process, f"was not ready after {timeout:.0f} s")
        time.sleep(0.02)


def _not_ready(process: Process, what: str) -> StackError:
    return StackError(
        f"{process.command.name} {what}. The end of its log:\n{process.log_tail()}",
        f"The whole log is {process.command.log}",
    )
