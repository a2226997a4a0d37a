"""`/openapi.json`: OpenAPI 3.1 from what :func:`api.calls.call` declared and from the pydantic types.

Pydantic speaks JSON Schema 2020-12, which is what OpenAPI 3.1 uses, so the schemas go in unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flask import Flask
from pydantic import TypeAdapter
from werkzeug.routing import Rule

from api import schemas
from api.calls import Answer, Example, JsonBody, Operation, UploadBody, operation_of
from api.errors import PROBLEM_JSON, PROBLEMS
from calotype import __version__

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]

REFERENCE = "#/components/schemas/{model}"
METHODS = ("POST", "GET", "PATCH", "DELETE")

DESCRIPTION = """\
Calotype is a job queue for image generation. Submit a job, poll it or wait for it, fetch its artifacts.

Send your key with every call: `Authorization: Bearer cal_…`. Every error is `application/problem+json`
with a stable `code`; every answer carries `X-Request-ID`. Unknown fields and parameters are refused.
Times are RFC 3339 in UTC.
"""

TAGS: Mapping[str, str] = {
    "Jobs": "Train, generate and benchmark.",
    "Webhooks": "Messages about ended jobs, and what became of them.",
    "Datasets": "Images with captions or labels, to train on and to compare with.",
    "Models": "The registry of models and their versions.",
    "Fleet": "Queues, the workers that serve them, and what was used.",
    "Administration": "Tenants and keys; needs a key with the scope `admin`.",
    "Service": "Health, metrics and this document.",
}

PATH_PARAMETERS: Mapping[str, tuple[str, Json]] = {
    "job_id": ("Id of the job.", {"type": "string", "format": "uuid"}),
    "delivery_id": ("Id of the delivery, also its `webhook-id`.", {"type": "string", "format": "uuid"}),
    "artifact_name": ("Name of the artifact within the job.", {"type": "string"}),
    "dataset_id": ("Id of the dataset, `ds_…`.", {"type": "string"}),
    "model_name": ("`name`, or `name@version`.", {"type": "string"}),
    "upload_id": ("Id of the upload.", {"type": "string", "format": "uuid"}),
    "tenant": ("Name of the tenant.", {"type": "string"}),
    "queue": ("Name of the queue, `<family>.<kind>`.", {"type": "string"}),
    "worker_id": ("Id of the worker.", {"type": "string", "format": "uuid"}),
    "key_id": ("Id of the key.", {"type": "string", "format": "uuid"}),
}


def document(app: Flask) -> Json:
    """The OpenAPI document of ``app``; complete when every view was declared with :func:`api.calls.call`."""
    calls = list(_calls(app))
    types = _Types.of([operation for _, _, operation in calls])
    paths: dict[str, Json] = {}
    for rule, method, operation in calls:
        paths.setdefault(path_of(rule), {})[method.lower()] = _operation(app, rule, operation, types)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Calotype",
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": types.components(operation.query for _, _, operation in calls),
            "headers": {"RequestId": {"description": "Names this request in the server's log.", "schema": TEXT}},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `cal_…`."},
            },
        },
    }


def path_of(rule: Rule) -> str:
    """The rule's path as OpenAPI writes it: ``/v1/jobs/{job_id}``."""
    return re.sub(r"<(?:[^:<>]+:)?([^<>]+)>", r"{\1}", rule.rule)


TEXT: Json = {"type": "string"}
REQUEST_ID: Json = {"X-Request-ID": {"$ref": "#/components/headers/RequestId"}}


def _calls(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    order = list(TAGS)
    found = []
    for rule in app.url_map.iter_rules():
        operation = operation_of(app.view_functions[rule.endpoint])
        if operation is not None:
            found += [(rule, method, operation) for method in METHODS if method in (rule.methods or ())]
    found.sort(key=lambda call: (order.index(call[2].tag), call[0].rule, METHODS.index(call[1])))
    yield from found


@dataclass(frozen=True)
class _Types:
    """The JSON Schemas of all types that calls take and give."""

    definitions: Json
    #: Schema of each type that was asked for, mostly a reference into ``definitions``.
    schemas: Mapping[tuple[int, Mode], Json]

    @classmethod
    def of(cls, operations: list[Operation]) -> _Types:
        wanted: dict[tuple[int, Mode], TypeAdapter[Any]] = {}
        for kind, mode in _mentioned(operations):
            wanted.setdefault((id(kind), mode), TypeAdapter(kind))
        inputs = [(key, mode, adapter) for (key, mode), adapter in wanted.items()]
        schemas_by_key, definitions = TypeAdapter.json_schemas(inputs, ref_template=REFERENCE)
        return cls(definitions.get("$defs", {}), dict(schemas_by_key))

    def schema(self, kind: Any, mode: Mode) -> Json:
        return dict(self.schemas[id(kind), mode])

    def whole(self, kind: Any) -> Json:
        """The schema of a query type itself, not a reference to it."""
        schema = self.schema(kind, "validation")
        name = schema.get("$ref", "").rpartition("/")[2]
        return dict(self.definitions[name]) if name else schema

    def components(self, queries: Iterable[type]) -> Json:
        """What goes into the document: query types became parameters and are left out."""
        left_out = {query.__name__ for query in queries}
        return {name: schema for name, schema in sorted(self.definitions.items()) if name not in left_out}


def _mentioned(operations: list[Operation]) -> Iterator[tuple[Any, Mode]]:
    yield schemas.Problem, "serialization"
    for operation in operations:
        if operation.query.model_fields:
            yield operation.query, "validation"
        if operation.body is not None:
            yield operation.body.schema, "validation"
        for answer in operation.answers:
            if answer.model is not None:
                yield answer.model, "serialization"


def _operation(app: Flask, rule: Rule, operation: Operation, types: _Types) -> Json:
    found: Json = {
        "operationId": app.view_functions[rule.endpoint].__name__,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [*_path_parameters(rule), *_query_parameters(operation, types), *_headers(operation)],
        "responses": _responses(operation, rule, types),
        # The list names the scope that the key must carry.
        "security": [{"key": [operation.scope]}] if operation.scope else [],
    }
    if operation.description:
        found["description"] = operation.description
    content = {**_json_content(operation.body, types), **_upload_content(operation.upload)}
    if content:
        required = operation.body is None or operation.body.required
        found["requestBody"] = {"required": required, "content": content}
    return found


def _path_parameters(rule: Rule) -> Iterator[Json]:
    for name in re.findall(r"<(?:[^:<>]+:)?([^<>]+)>", rule.rule):
        description, schema = PATH_PARAMETERS[name]
        yield {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


def _query_parameters(operation: Operation, types: _Types) -> Iterator[Json]:
    if not operation.query.model_fields:
        return
    schema = types.whole(operation.query)
    for name, member in schema["properties"].items():
        member = dict(member)
        description = member.pop("description", "")
        member.pop("title", None)
        parameter: Json = {"name": name, "in": "query", "required": name in schema.get("required", ())}
        yield {**parameter, "description": description, "schema": _without_null(member)}


def _without_null(schema: Json) -> Json:
    """A query parameter that is not given is absent, never null."""
    if schema.get("default", ...) in (None, []):
        del schema["default"]
    options = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        return {**options[0], **schema}
    return {**schema, "anyOf": options} if options else schema


def _headers(operation: Operation) -> Iterator[Json]:
    for name, meaning in operation.headers.items():
        yield {"name": name, "in": "header", "required": False, "description": meaning, "schema": TEXT}


def _json_content(body: JsonBody | None, types: _Types) -> Json:
    if body is None:
        return {}
    content: Json = {"schema": types.schema(body.schema, "validation")}
    if body.examples:
        content["examples"] = {example.name: _example(example) for example in body.examples}
    return {body.media_type: content}


def _example(example: Example) -> Json:
    return {"summary": example.summary, "value": dict(example.value)}


def _upload_content(upload: UploadBody | None) -> Json:
    if upload is None:
        return {}
    name, meaning = upload.file
    properties: Json = {field: {**TEXT, "description": text} for field, text in upload.fields.items()}
    properties[name] = {**TEXT, "contentMediaType": "application/octet-stream", "description": meaning}
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"multipart/form-data": {"schema": schema}}


def _responses(operation: Operation, rule: Rule, types: _Types) -> Json:
    found: Json = {str(answer.status): _answer(answer, types) for answer in operation.answers}
    by_status: dict[int, list[str]] = {}
    for code in dict.fromkeys([*_common_codes(operation, rule), *operation.codes]):
        by_status.setdefault(PROBLEMS[code].status, []).append(code)
    for status, codes in sorted(by_status.items()):
        found[str(status)] = _problem_response(status, codes)
    return found


def _common_codes(operation: Operation, rule: Rule) -> Iterator[str]:
    """What can go wrong with every call of this kind."""
    yield from ("invalid_request", "internal_error")
    if operation.scope is not None:
        yield from ("unauthenticated", "forbidden", "dependency_down")
    if rule.arguments:
        yield "not_found"
    if operation.body is not None or operation.upload is not None:
        yield from ("malformed_request", "too_large", "unsupported_media_type")


def _answer(answer: Answer, types: _Types) -> Json:
    headers = {name: {"description": text, "schema": TEXT} for name, text in answer.headers.items()}
    found: Json = {"description": answer.description, "headers": {**headers, **REQUEST_ID}}
    if answer.model is not None:
        schema = types.schema(answer.model, "serialization")
        found["content"] = {answer.media_type or "application/json": {"schema": schema}}
    elif answer.media_type is not None:
        found["content"] = {answer.media_type: {}}
    for other in answer.others:
        found["content"][other] = {}
    return found


def _problem_response(status: int, codes: list[str]) -> Json:
    headers = dict(REQUEST_ID)
    if status in {429, 503}:
        headers["Retry-After"] = {"description": "Seconds to wait before another try.", "schema": TEXT}
    if status == 401:
        headers["WWW-Authenticate"] = {"description": "The scheme to use: `Bearer`.", "schema": TEXT}
    return {
        "description": f"{'Codes' if len(codes) > 1 else 'Code'}: {', '.join(f'`{code}`' for code in codes)}.",
        "headers": headers,
        "content": {PROBLEM_JSON: {"schema": {"$ref": REFERENCE.format(model="Problem")}}},
    }
