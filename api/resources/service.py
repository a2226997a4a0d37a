"""Liveness, readiness, metrics."""

from __future__ import annotations

from flask import Blueprint, Response, current_app
from flask.typing import ResponseReturnValue
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api import schemas
from api.calls import Answer, call
from api.errors import problem
from api.probes import Probe, outcomes
from api.serialize import answer
from api.services import Services
from calotype.database import pending_migrations
from calotype.errors import DependencyDown

blueprint = Blueprint("service", __name__)

METRICS_REGISTRY = "calotype-metrics"
PROBES = "calotype-probes"


@blueprint.get("/healthz")
@call("Service", "Is the process alive?", answers=[Answer(status=200, description="Yes.", model=schemas.Health)])
def get_health() -> ResponseReturnValue:
    return answer(schemas.Health())


@blueprint.get("/readyz")
@call(
    "Service",
    "Can it take jobs?",
    description="Postgres is needed. Without the broker jobs start later, without the object store files are "
    "missing: both are told, and the process stays ready.",
    answers=[Answer(status=200, description="Yes, perhaps degraded.", model=schemas.Readiness)],
    codes=["dependency_down"],
)
def get_readiness() -> ResponseReturnValue:
    probes: dict[str, Probe] = current_app.extensions[PROBES]
    checks = schemas.Checks(**outcomes(probes))
    if not checks.postgres.ok:
        return problem(
            status=503,
            code=DependencyDown.code,
            title=DependencyDown.title,
            detail=checks.postgres.detail or DependencyDown().detail,
            extra={"checks": checks.model_dump()},
        )
    degraded = not (checks.object_store.ok and checks.broker.ok)
    return answer(schemas.Readiness(status="degraded" if degraded else "ok", checks=checks))


def make_probes(here: Services) -> dict[str, Probe]:
    """A probe for each member of :class:`api.schemas.Checks`."""
    return {
        "postgres": Probe(lambda: _ask_postgres(here)),
        "object_store": Probe(here.store.ping),
        "broker": Probe(lambda: _ask_broker(here)),
    }


def _ask_postgres(here: Services) -> None:
    missing = pending_migrations(here.engine)
    if missing:
        raise DependencyDown(f"The database lacks the migrations {', '.join(missing)}; run `calotype migrate`.")


def _ask_broker(here: Services) -> None:
    if not here.doorbell.ping():
        raise DependencyDown("The broker does not answer; workers look for work by themselves meanwhile.")


@blueprint.get("/metrics")
@call(
    "Service",
    "Get metrics",
    answers=[Answer(status=200, description="In the format of Prometheus.", media_type="text/plain")],
)
def get_metrics() -> ResponseReturnValue:
    return Response(generate_latest(current_app.extensions[METRICS_REGISTRY]), content_type=CONTENT_TYPE_LATEST)
