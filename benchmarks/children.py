"""A program of this package that answers a line with a line, in the environment that a worker has."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks import processes
from calotype.local.modules import module_argv, module_environment
from calotype.local.stack import TENSOR_ENVIRONMENT


@contextmanager
def answering(module: str, *arguments: str, seconds: float) -> Iterator[Callable[[str], str]]:
    """Gives a function that sends a line and waits so long for the answer; the program ends with the block.

    The function raises TimeoutError, and RuntimeError where the program has ended instead.
    """
    environment = {**module_environment(os.environ), **TENSOR_ENVIRONMENT}
    with subprocess.Popen(
        module_argv(module, *arguments), env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def ask(line: str) -> str:
            assert process.stdin is not None
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            answer = processes.read_line(process, seconds)
            if not answer:
                raise RuntimeError(f"{module} ended instead of answering {line!r}")
            return answer

        try:
            yield ask
        finally:
            process.kill()
