"""``python -m api``: serves the API until SIGTERM or Ctrl-C."""

from __future__ import annotations

import sys

from calotype import log
from calotype.errors import CalotypeError
from calotype.settings import load_settings


def main() -> int:
    """Exit status 0 after a clean stop, 2 when the settings or the address do not allow a start."""
    try:
        settings = load_settings()
        settings.require("database_url", "broker_url", "s3_endpoint", "s3_access_key", "s3_secret_key")
        log.configure(settings)
        # Only now: a wrong setting should not have to wait for gunicorn to load.
        from api.server import Server, listen

        listener = listen(settings.bind_host, settings.port)
    except CalotypeError as exc:
        sys.stderr.write(f"calotype api: {exc.detail}\n")
        return 2
    Server(settings, listener).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
