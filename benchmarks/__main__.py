"""``python -m benchmarks [name …]``: run all measurements, or the named ones, and print their tables.

All of them together also write docs/performance.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from benchmarks import (
    api_process,
    cancel,
    claims,
    fairness,
    gan,
    interactive,
    machine,
    overhead,
    page,
    pickup,
    recovery,
    starter_quality,
    submit_rate,
    waiting,
)
from benchmarks.results import Report, Run
from benchmarks.scale import Scale

MEASUREMENTS: dict[str, Callable[[Scale], Report]] = {
    "pickup": pickup.main,
    "submit-rate": submit_rate.main,
    "claims": claims.main,
    "fairness": fairness.main,
    "overhead": overhead.main,
    "interactive": interactive.main,
    "waiting": waiting.main,
    "cancel": cancel.main,
    "recovery": recovery.main,
    "api-process": api_process.main,
    "starter-quality": starter_quality.main,
    "gan": gan.main,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a measurement could not be carried out; a missed target is no failure."""
    options = _parser().parse_args(arguments)
    # An exception rather than an end on the spot, so that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = options.names or ([] if options.page else list(MEASUREMENTS))
    failed = [name for name in names if not _run(name, Scale(options.scale))]
    if options.page or not options.names:
        page.write(page.stored_runs(MEASUREMENTS))
        print(f"\nwrote {page.PAGE.relative_to(page.ROOT)}")
    if failed:
        print(f"\nnot carried out: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASUREMENTS], metavar="name", help=", ".join(MEASUREMENTS))
    parser.add_argument("--page", action="store_true", help="write docs/performance.md from the newest run of each")
    scales = parser.add_mutually_exclusive_group()
    scales.add_argument(
        "--full", dest="scale", action="store_const", const=Scale.FULL, help="the amounts that the targets speak of"
    )
    scales.add_argument(
        "--tiny", dest="scale", action="store_const", const=Scale.TINY, help="prove that it runs; nothing is kept"
    )
    parser.set_defaults(scale=Scale.STANDARD)
    return parser


def _run(name: str, scale: Scale) -> bool:
    """Carry out one measurement; prints a failure and goes on, since the others may still succeed."""
    print(f"\n== {name}", flush=True)
    began, around = time.monotonic(), machine.describe()
    try:
        report = MEASUREMENTS[name](scale)
    except Exception:  # noqa: BLE001 - whatever it was, it is shown, and the exit status says so
        traceback.print_exc()
        return False
    print(page.spoken(report), flush=True)
    if scale is not Scale.TINY:
        run = Run(name=name, scale=scale, report=report, seconds=time.monotonic() - began, machine=around)
        run.save(page.RUNS)
    return True


if __name__ == "__main__":
    sys.exit(main())
