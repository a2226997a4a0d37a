"""gunicorn for the baseline, with the settings that Calotype's own API has."""

from __future__ import annotations

from flask import Flask
from gunicorn.app.base import BaseApplication

from api.server import BACKLOG, KEEPALIVE_SECONDS
from benchmarks.baseline import configuration
from calotype.settings import Settings


class Server(BaseApplication):  # type: ignore[misc]
    """Serves :func:`benchmarks.baseline.app.create_app` on loopback."""

    def load_config(self) -> None:
        same = Settings()
        options = {
            "bind": f"127.0.0.1:{configuration.port()}",
            "backlog": BACKLOG,
            "workers": same.api_workers,
            "worker_class": "gthread",
            "threads": same.api_threads,
            "worker_connections": same.api_connections,
            "keepalive": KEEPALIVE_SECONDS,
            "timeout": 60,
            "accesslog": None,
            "loglevel": "warning",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        # In the worker process, after the fork.
        from benchmarks.baseline.app import create_app

        return create_app()
