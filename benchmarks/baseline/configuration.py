"""Where the baseline finds its services: environment variables, read when they are needed."""

from __future__ import annotations

import os

DATABASE_URL = "BASELINE_DATABASE_URL"
BROKER_URL = "BASELINE_BROKER_URL"
PORT = "BASELINE_PORT"


def database_url() -> str:
    return os.environ.get(DATABASE_URL, "postgresql+psycopg://localhost/baseline")


def broker_url() -> str:
    return os.environ.get(BROKER_URL, "redis://localhost:6379/0")


def port() -> int:
    return int(os.environ.get(PORT, "8000"))
