"""`GET /openapi.json`, and the one copy of the document that the process keeps."""

from __future__ import annotations

import json
from typing import Any, cast

from flask import Blueprint, Flask, Response, current_app
from flask.typing import ResponseReturnValue

from api import openapi
from api.calls import Answer, call

blueprint = Blueprint("document", __name__)

_CACHE = "calotype-openapi"


def openapi_document(app: Flask) -> dict[str, Any]:
    """The document of ``app``; made at the first call, since a process that no one asks need not keep it."""
    if _CACHE not in app.extensions:
        app.extensions[_CACHE] = openapi.document(app)
    return cast(dict[str, Any], app.extensions[_CACHE])


@blueprint.get("/openapi.json")
@call(
    "Service",
    "Get this document",
    answers=[Answer(status=200, description="OpenAPI 3.1.", media_type="application/json")],
)
def get_openapi() -> ResponseReturnValue:
    return Response(json.dumps(openapi_document(current_app)), content_type="application/json")
