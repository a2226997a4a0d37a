"""Asking the services that the API rests on, without waiting for one that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from api import schemas
from calotype.errors import CalotypeError

#: Seconds a service has to answer; probes of orchestrators are not more patient.
PATIENCE = 2.0


class Probe:
    """One service. A question that hangs stays the only one until it ends, so that threads cannot pile up."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._answer: Future[None] | None = None

    def begin(self) -> Future[None]:
        """Asks in the background, unless an earlier question is still open."""
        with self._lock:
            if self._answer is None or self._answer.done():
                self._answer = Future()
                # A daemon: one that hangs must not keep the process from ending.
                threading.Thread(target=self._run, args=(self._answer,), name="probe", daemon=True).start()
            return self._answer

    def _run(self, answer: Future[None]) -> None:
        try:
            self._ask()
        except BaseException as exc:  # noqa: BLE001 - raised again where the answer is awaited
            answer.set_exception(exc)
        else:
            answer.set_result(None)


def outcomes(probes: Mapping[str, Probe]) -> dict[str, schemas.Check]:
    """Asks all at once; takes no longer than :data:`PATIENCE`. Errors that are no trouble of a service are raised."""
    deadline = time.monotonic() + PATIENCE
    asked = {name: probe.begin() for name, probe in probes.items()}
    return {name: _outcome(answer, deadline - time.monotonic()) for name, answer in asked.items()}


def _outcome(answer: Future[None], seconds: float) -> schemas.Check:
    try:
        answer.result(max(seconds, 0.0))
    except TimeoutError:
        return schemas.Check(ok=False, detail=f"No answer within {PATIENCE:g} s.")
    except CalotypeError as exc:
        return schemas.Check(ok=False, detail=exc.public_detail)
    return schemas.Check(ok=True, detail=None)
