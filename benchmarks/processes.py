"""The processes of a measurement: started with a log of their own, ended by their number when the block ends."""

from __future__ import annotations

import os
import select
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from benchmarks.services import Stack
from calotype.local.modules import module_argv, module_environment
from calotype.local.process import Command, Process, wait_until_ready

#: The slowest start: a worker that imports torch on a busy machine.
READY_SECONDS = 180.0


@contextmanager
def started(command: Command, ready: Callable[[], bool]) -> Iterator[Process]:
    """A process that is ready, until the end of the block."""
    process = Process(command)
    try:
        wait_until_ready(process, ready, READY_SECONDS)
        yield process
    finally:
        process.stop()


def module(
    stack: Stack, name: str, module_name: str, *arguments: str, variables: Mapping[str, str], grace: float = 5.0
) -> Command:
    """One of our packages as a program. Settings of the shell that started the measurement do not reach it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("CALOTYPE_")}
    return Command(
        name=name,
        argv=module_argv(module_name, *arguments),
        log=stack.folder / f"{name}.log",
        environment={**module_environment(inherited), **variables},
        cwd=stack.folder,
        grace_seconds=grace,
    )


def answers(url: str) -> bool:
    """Whether a server answers there, whatever it says."""
    # The standard library's own opener would ask a proxy of the environment, which cannot reach loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
    return True


def read_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    """The next line of a child's output, which it writes whole. Raises TimeoutError when none comes."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], seconds)
    if not readable:
        raise TimeoutError(f"not within {seconds:g} s: a line from {process.args!r}")
    return process.stdout.readline().decode().strip()


def family(process: Process) -> list[psutil.Process]:
    """The process and all that it has started."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def cpu_seconds(process: Process) -> float:
    """CPU time that the process and its children have used."""
    return float(sum(sum(one.cpu_times()[:2]) for one in family(process)))


def largest_rss(process: Process) -> int:
    """Resident memory in bytes of the largest of the process and its children."""
    return max(int(one.memory_info().rss) for one in family(process))
