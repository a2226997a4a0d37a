"""Measures one GAN at a time: ``python -m benchmarks.gan_child``

Answers each line, a `Case`, with a line, a `Found`. Each is measured in a process of its own, split off before any
network was built, so that none finds or counts what another has left in memory.
"""

from __future__ import annotations

import os
import sys
import traceback

from benchmarks.gan_case import Case
from benchmarks.gan_measuring import measure


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_answer(Case.read(line)))
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"{line.strip()} could not be measured")


def _answer(case: Case) -> int:
    try:
        print(measure(case).line(), flush=True)
    except Exception:  # noqa: BLE001 - a copy of the process must not go on where its original does
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
