"""The `calotype` command. ``main`` is the entry; everything else is loaded when a command needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an expected failure ends as a message and an exit code, without a traceback."""
    # Installers check this too, but a checkout can be run without one.
    if sys.version_info < (3, 11):  # noqa: UP036
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.stderr.write("Calotype needs Python 3.11 or newer; this is Python " + found + ".\n")
        sys.stderr.write("Make an environment with a newer one, e.g.: python3.11 -m venv .venv\n")
        sys.exit(1)
    try:
        from calotype.cli.app import run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
