"""Requests that the fixtures' small model can do, and problems in short."""

from __future__ import annotations

import json
from typing import Any

from werkzeug.test import TestResponse


def generate(**values: Any) -> dict[str, Any]:
    """A request that the small model of the fixtures can do; ``input`` is merged."""
    given = dict(values.pop("input", {}))
    base = {"kind": "generate", "family": "diffusion", "model": "small-model"}
    return {**base, **values, "input": {"prompt": "blue bird logo", **given}}


def problem(response: TestResponse) -> tuple[int, str, list[str]]:
    """Status, code and the places of the errors, as text."""
    body = json.loads(response.data)
    return response.status_code, body["code"], [".".join(map(str, error["loc"])) for error in body["errors"]]
