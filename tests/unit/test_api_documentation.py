"""`docs/api.md` says what the application does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from flask import Flask

from api import openapi
from api.app import create_app
from api.errors import ARCHIVES, PROBLEMS
from calotype import errors
from calotype.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
#: Codes of job errors: they are in `job.error`, never in an answer.
JOB_CODES = {"worker_lost", "deadline_passed"}


@pytest.fixture(scope="module")
def app() -> Flask:
    """The application; it never connects here."""
    return create_app(
        Settings(
            database_url="postgresql://nobody@127.0.0.1:1/nothing",
            broker_url="redis://127.0.0.1:1/0",
            s3_endpoint="http://127.0.0.1:1",
            s3_access_key="key",
            s3_secret_key="secret",
        )
    )


def test_the_page_has_a_section_for_every_call_and_for_nothing_else(app: Flask) -> None:
    served = {
        f"{method} {openapi.path_of(rule)}"
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if rule.endpoint != "pages.asset"
    }
    assert set(re.findall(r"^### `([A-Z]+ [^`]+)`$", PAGE, re.MULTILINE)) == served


def test_the_page_lists_every_error_code_with_its_status() -> None:
    told = dict(re.findall(r"^\| `([a-z_]+)` \| (\d{3}) \|", PAGE, re.MULTILINE))
    assert told == {code: str(entry.status) for code, entry in PROBLEMS.items()}


def test_every_code_that_the_domain_raises_is_known() -> None:
    own = {
        kind.code: kind.status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.CalotypeError)
    }
    # These never reach a client: they belong to workers and to the start of a process.
    answered = {
        code: status for code, status in own.items() if code not in {"lease_lost", "cancel_requested", "bad_settings"}
    }
    assert {code: PROBLEMS[code].status for code in answered} == answered
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "calotype").rglob("*.py")]
    raised = {code for source in sources for code in re.findall(r'\bcode="([a-z_]+)"', source)}
    refused = {code for source in sources for code in re.findall(r'\brefusal\(\s*"([a-z_]+)"', source)}
    assert raised - JOB_CODES <= set(PROBLEMS)
    assert refused <= set(ARCHIVES)
