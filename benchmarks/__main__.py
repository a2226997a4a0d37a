"""``python -m benchmarks [name …]``: run all measurements, or the named ones, and print their tables."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks import api_process, claims, starter_quality

MEASUREMENTS: dict[str, Callable[[], None]] = {
    "claims": claims.main,
    "api-process": api_process.main,
    "starter-quality": starter_quality.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *MEASUREMENTS], metavar="name", help=", ".join(MEASUREMENTS))
    for name in parser.parse_args().names or MEASUREMENTS:
        print(f"\n== {name}")
        MEASUREMENTS[name]()


if __name__ == "__main__":
    main()
