"""The OpenAPI page, from the contract: what `/openapi.json` says is what the routes do."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from aemos_core.contract import Access, Method, methods
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import descriptor_pb2

from aemos_gateway.json_codec import Field, Shape, is_map, type_of
from aemos_gateway.rest import success

_IN_PATH = re.compile(r"(?<={)\w+(?=})")


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


_TEXT, _TIME = {"type": "string"}, {"type": "string", "format": "date-time"}
_MISTAKES = {"type": "array", "items": {"type": "object", "properties": {"loc": _TEXT, "message": _TEXT}}}
_STORED = {
    **{"id": {"type": "integer"}, "value": {}, "variableName": _TEXT, "telemetryDataId": {"type": "integer"}},
    **{"sensorUuid": _TEXT, "recievedAt": _TIME},
}
_SCHEMAS: dict[str, Any] = {
    "Problem": {
        "type": "object",
        "required": ["type", "title", "status", "detail", "reason", "errors"],
        "properties": {
            **dict.fromkeys(("type", "title", "detail", "reason"), _TEXT),
            "status": {"type": "integer"},
            "errors": _MISTAKES,
        },
    },
    "StoredReading": {"type": "object", "required": list(_STORED), "properties": _STORED},
}
"""Of what the contract's methods do not answer."""
_PROBLEM = {
    "description": "A problem (RFC 9457).",
    "content": {"application/problem+json": {"schema": _ref("Problem")}},
}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema}


_READING = {
    "type": "object",
    "required": ["variableName", "value"],
    "properties": {
        "variableName": {"type": "string", "minLength": 1, "maxLength": 200},
        "value": {"description": "A number (numeric text counts as one), text, a boolean or any JSON."},
        "recievedAt": _TIME,
        "receivedAt": _TIME,
        "sensorUuid": {"type": "string", "description": "Default: the token's sensor, or the device's first."},
        "messageId": {
            "type": "string",
            "maxLength": 128,
            "description": "For 24 h the same again is stored once; with another body it is 409.",
        },
    },
}
_VALUES = {"type": "object", "minProperties": 1, "maxProperties": 1000}
_SENT: dict[str, Any] = {
    "oneOf": [
        _READING,
        {
            "type": "object",
            "required": ["values"],
            "description": "Several variables at once; ts is milliseconds since 1970 UTC.",
            "properties": {"ts": {"type": "integer"}, "values": _VALUES, "sensorUuid": {"type": "string"}},
        },
        {**_VALUES, "description": "Several variables at once, measured now."},
    ]
}


def _sending(operation: str, summary: str, schema: dict[str, Any], example: Any, **more: Any) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    data = {"oneOf": [_ref("StoredReading"), {"type": "array", "items": _ref("StoredReading")}]}
    receipt = {"type": "object", "required": ["data"], "properties": {"data": data, "errors": _MISTAKES}}
    return {
        "post": {
            "operationId": operation,
            "summary": f"{summary}; 201 means durable. Authorized by a device token. A body may be gzip.",
            "requestBody": {"required": True, "content": content},
            "responses": {
                "201": {"description": "Stored.", "content": {"application/json": {"schema": receipt}}},
                "default": _PROBLEM,
            },
            **more,
        }
    }


_ONE = {"value": "25.5", "variableName": "temperature"}
_HAND_WRITTEN: dict[str, Any] = {
    "/api/v1/datastreams/token": _sending("SendReading", "Stores what a device measured, at most 64 KiB", _SENT, _ONE),
    "/api/v1/datastreams/batch": _sending(
        "SendReadings",
        "Stores up to 1,000 readings, at most 1 MiB, all or, unless partial=true, none of them",
        {"type": "array", "items": _SENT, "minItems": 1, "maxItems": 1000},
        [_ONE, {"temperature": 21.5, "open": True}],
        parameters=[_query("partial", {"type": "boolean"})],
    ),
    "/api/v1/datastreams/export": {
        "get": {
            "operationId": "ExportReadings",
            "summary": "All readings of a range; an answer that ends without its last chunk is not whole.",
            "description": "Role: viewer.",
            "parameters": [
                _query("format", {"type": "string", "enum": ["ndjson", "csv"]}),
                _query("sensorUuid", {"type": "array", "items": {"type": "string"}}),
                _query("variableName", {"type": "array", "items": {"type": "string"}}),
                _query("from", _TIME),
                _query("to", _TIME),
                _query("order", {"type": "string", "enum": ["asc", "desc"]}),
            ],
            "responses": {
                "200": {"description": "The readings.", "content": {"application/x-ndjson": {}, "text/csv": {}}},
                "default": _PROBLEM,
            },
        }
    },
}


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the contract's routes and the hot ingest route."""
    schemas = dict(_SCHEMAS)
    comments = _comments()
    paths: dict[str, Any] = {path: dict(item) for path, item in _HAND_WRITTEN.items()}
    for method in methods().values():
        if method.route:
            item = paths.setdefault(_camel_route(method), {})
            item[method.verb.lower()] = _operation(method, schemas, comments)
    return {
        "openapi": "3.1.0",
        "info": {"title": "AEMOS", "version": "1", "description": "Telemetry in, rules over it, notifications out."},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}],
    }


def _operation(method: Method, schemas: dict[str, Any], comments: dict[str, str]) -> dict[str, Any]:
    request, in_path = method.request.DESCRIPTOR, set(_IN_PATH.findall(method.route))
    fields = [field for field in request.fields if field.name in in_path or not method.has_body]
    operation: dict[str, Any] = {
        "operationId": method.name,
        "tags": [method.service.rsplit(".", 1)[1].removesuffix("Service")],
        "summary": comments.get(method.path, ""),
        "description": f"Role: {Access.Name(method.access).removeprefix('ACCESS_').lower()}.",
        "parameters": [_parameter(field, field.name in in_path) for field in fields],
        "responses": {**_success(method, schemas), "default": _PROBLEM},
    }
    if method.access == Access.ACCESS_PUBLIC:
        operation["security"] = []
    if method.has_body:
        schema = _schema(request, schemas, leave_out=in_path)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _success(method: Method, schemas: dict[str, Any]) -> dict[str, Any]:
    status = success(method)
    if status is HTTPStatus.NO_CONTENT:
        return {str(status.value): {"description": "Gone."}}
    if method.response is HttpBody:
        return {"200": {"description": "The document.", "content": {"*/*": {"schema": {"type": "string"}}}}}
    reference = _reference(method.response.DESCRIPTOR, schemas)
    body = {"description": "Done.", "content": {"application/json": {"schema": reference}}}
    return {str(status.value): body}


def _parameter(field: Field, in_path: bool) -> dict[str, Any]:
    where = {"in": "path", "required": True} if in_path else {"in": "query"}
    return {"name": field.camelcase_name, **where, "schema": _field_schema(field, {})}


def _reference(descriptor: Shape, schemas: dict[str, Any]) -> dict[str, Any]:
    if descriptor.name not in schemas:
        schemas[descriptor.name] = {}
        schemas[descriptor.name] = _schema(descriptor, schemas)
    return _ref(descriptor.name)


def _schema(descriptor: Shape, schemas: dict[str, Any], leave_out: set[str] = frozenset()) -> dict[str, Any]:  # type: ignore[assignment]
    kept = [field for field in descriptor.fields if field.name not in leave_out]
    return {"type": "object", "properties": {f.camelcase_name: _field_schema(f, schemas) for f in kept}}


def _field_schema(field: Field, schemas: dict[str, Any]) -> dict[str, Any]:
    if is_map(field):
        value = field.message_type.fields_by_name["value"]
        return {"type": "object", "additionalProperties": _field_schema(value, schemas)}
    known = type_of(field)
    one = known.schema if known else _reference(field.message_type, schemas)
    return {"type": "array", "items": one} if field.is_repeated else one


def _camel_route(method: Method) -> str:
    fields = method.request.DESCRIPTOR.fields_by_name
    return _IN_PATH.sub(lambda name: fields[name[0]].camelcase_name, method.route)


def _comments() -> dict[str, str]:
    """The comment of each method by its gRPC path, from the descriptors that `make proto` keeps beside the code."""
    image = descriptor_pb2.FileDescriptorSet.FromString((files("aemos.v1") / "contract.binpb").read_bytes())
    found = {}
    for file in image.file:
        for location in file.source_code_info.location:
            if len(location.path) == 4 and location.path[0] == 6 and location.path[2] == 2:
                service = file.service[location.path[1]]
                method = service.method[location.path[3]].name
                found[f"/{file.package}.{service.name}/{method}"] = " ".join(location.leading_comments.split())
    return found
