"""Why a job waits."""

from __future__ import annotations

from flask import Blueprint
from flask.typing import ResponseReturnValue

from api import quotes, serialize
from api.auth import principal
from api.calls import Answer, call
from api.resources.jobs import parse_job_id
from api.services import services
from calotype import explain
from calotype.database import transaction
from calotype.tenants import Scope

blueprint = Blueprint("explain", __name__)


@blueprint.get("/jobs/<job_id>/explain")
@call(
    "Jobs",
    "Explain why a job waits",
    scope=Scope.JOBS_READ,
    description="Reasons with stable codes, the job's position, and when it is expected to start, as an interval from "
    "observed rates. Of other tenants it tells numbers only.",
    answers=[Answer(status=200, description="The job as it stands now.", model=quotes.Explanation)],
)
def explain_job(job_id: str) -> ResponseReturnValue:
    with transaction(services().engine) as conn:
        found = explain.explain(conn, principal().tenant_id, parse_job_id(job_id))
    return serialize.answer(quotes.explanation(found))
