"""`/docs`: the OpenAPI document as a readable page, with no asset from elsewhere; works without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, cast

from flask import Blueprint, Response, current_app, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from markupsafe import Markup, escape

from api.calls import Answer, call
from api.document import openapi_document
from api.errors import PROBLEMS

blueprint = Blueprint("pages", __name__, template_folder=".")

#: What the page loads. Files of this package by name, so that a wheel carries them and nothing else is served.
ASSETS = {"docs.css": "text/css; charset=utf-8", "docs.js": "text/javascript; charset=utf-8"}

_CACHE = "calotype-docs"

#: The page runs its own script and style and nothing else, whatever a description may contain.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@blueprint.get("/")
@call("Service", "Go to the documentation", answers=[Answer(status=302, description="To /docs.")])
def root() -> ResponseReturnValue:
    return redirect(url_for("pages.docs"), code=302)


@blueprint.get("/docs")
@call(
    "Service",
    "Read this documentation",
    answers=[Answer(status=200, description="A page for people.", media_type="text/html")],
)
def docs() -> ResponseReturnValue:
    response = Response(_page(), content_type="text/html; charset=utf-8")
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


@blueprint.get("/docs/<any('docs.css', 'docs.js'):asset_name>")
def asset(asset_name: str) -> ResponseReturnValue:
    data = resources.files(__package__).joinpath(asset_name).read_bytes()
    response = Response(data, content_type=ASSETS[asset_name])
    response.headers["Cache-Control"] = "public, max-age=3600"
    return response


def _page() -> str:
    """The page; rendered once, since the document never changes while the process lives."""
    if _CACHE not in current_app.extensions:
        document = openapi_document(current_app)
        current_app.extensions[_CACHE] = render_template(
            "docs.html", document=document, groups=_groups(document), problems=PROBLEMS
        )
    return cast(str, current_app.extensions[_CACHE])


def _groups(document: Mapping[str, Any]) -> list[tuple[Mapping[str, str], list[dict[str, Any]]]]:
    """Per tag its operations, each with the method and path it is found under."""
    operations = [
        {"method": method.upper(), "path": path, **operation}
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return [(tag, [one for one in operations if tag["name"] in one["tags"]]) for tag in document["tags"]]


@blueprint.app_template_filter()
def prose(text: str) -> Markup:
    """Text with `code` spans and blank lines between paragraphs, as HTML."""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return Markup("").join(Markup("<p>{}</p>").format(spans(paragraph)) for paragraph in paragraphs)


@blueprint.app_template_filter()
def spans(text: str) -> Markup:
    """Text with `code` spans, as HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped just before


@blueprint.app_template_filter()
def pretty(value: Any) -> str:
    """A JSON value as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


@blueprint.app_template_filter()
def curl(operation: Mapping[str, Any], value: Any) -> str:
    """The command that makes this call with ``value`` as body."""
    body = pretty(value).replace("'", "'\\''")
    return (
        f'curl -X {operation["method"]} "$CALOTYPE_URL{operation["path"]}" \\\n'
        '  -H "Authorization: Bearer $CALOTYPE_API_KEY" \\\n'
        f"  -H 'Content-Type: application/json' \\\n  -d '{body}'"
    )


@blueprint.app_template_filter()
def type_of(schema: Mapping[str, Any]) -> Markup:
    """The type of a schema in a few words; references become links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#schema-{0}">{0}</a>').format(name)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return Markup(" or ").join(type_of(option) for option in schema[key])
    if "const" in schema:
        return Markup("<code>{}</code>").format(json.dumps(schema["const"]))
    if "enum" in schema:
        return Markup(" | ").join(Markup("<code>{}</code>").format(json.dumps(value)) for value in schema["enum"])
    if schema.get("type") == "array" and "items" in schema:
        return Markup("list of {}").format(type_of(schema["items"]))
    kind = schema.get("type", "any")
    return Markup("{} ({})").format(kind, schema["format"]) if "format" in schema else Markup("{}").format(kind)


#: JSON Schema's words for limits, as people write them.
LIMITS = {
    "minimum": "≥ {}",
    "maximum": "≤ {}",
    "exclusiveMinimum": "> {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
}


@blueprint.app_template_filter()
def limits_of(schema: Mapping[str, Any]) -> str:
    """The limits and the default of a schema in a few words."""
    options = [schema, *schema.get("anyOf", [])]
    found = [text.format(option[word]) for option in options for word, text in LIMITS.items() if word in option]
    if "default" in schema and "const" not in schema:
        found.append(f"default {json.dumps(schema['default'], ensure_ascii=False)}")
    return ", ".join(found)
