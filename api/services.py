"""What the views work with: one object a process, made by :func:`api.app.create_app`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import cast

import sqlalchemy as sa
from flask import current_app

from api.turns import Permits, Turns
from api.watch import Watcher
from calotype.artifacts import ObjectStore
from calotype.doorbell import Doorbell
from calotype.references import Memory
from calotype.settings import Settings

EXTENSION = "calotype"


@dataclass(frozen=True, kw_only=True)
class Services:
    """Settings and connections of this process."""

    settings: Settings
    #: For transactions of several statements.
    engine: sa.Engine
    #: For single statements, see :func:`calotype.database.statement`.
    statements: sa.Engine
    store: ObjectStore
    doorbell: Doorbell
    watcher: Watcher
    #: What names of models meant lately.
    memory: Memory = field(default_factory=Memory)
    #: Requests that are worked on at once.
    turns: Turns
    #: Set when the process begins to stop: whoever waits is answered at once.
    stopping: threading.Event = field(default_factory=threading.Event)
    #: A permit a client that waits, so that they cannot take every thread.
    waiters: Permits

    def stop(self) -> None:
        """Ends all waiting. Takes no lock that is held for long: a signal handler calls it."""
        self.stopping.set()
        self.watcher.stop()

    def close(self) -> None:
        """Lets go of threads and connections."""
        self.stop()
        self.watcher.close()
        self.doorbell.close()
        self.engine.dispose()
        self.statements.dispose()


def services() -> Services:
    """The services of the app that handles the present request."""
    return cast(Services, current_app.extensions[EXTENSION])
