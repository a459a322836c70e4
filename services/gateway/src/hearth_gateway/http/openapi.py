"""The OpenAPI document, made from the route table."""

import re
from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel

from hearth_gateway import errors
from hearth_gateway.domain import endings
from hearth_gateway.http.routing import Endpoint, Parameter

_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEM_SCHEMA: Final = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "fix"],
    "properties": {
        "type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"},
        "code": {"type": "string", "description": "stable, such as E_FUNCTION_NOT_FOUND"},
        "fix": {"type": "string", "description": "what to do about it"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "field": {"type": "string"}, "message": {"type": "string"}, "line": {"type": "integer"},
                    "hint": {"type": "string"},
                },
            },
        },
    },
}  # fmt: skip


def document(endpoints: Sequence[Endpoint], *, version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    kinds = (*errors.kinds(), *endings.kinds())
    return {
        "openapi": "3.1.0",
        "x-codes": [[kind.code, kind.status, kind.title, kind.fix] for kind in kinds],
        "info": {"title": "Hearth", "version": version, "description": "Functions as a service on machines you own."},
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM_SCHEMA},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in _IN_PATH.findall(endpoint.path)
    ]
    operation: dict[str, Any] = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "security": [] if endpoint.access == "open" else [{"key": []}, {"bearer": []}],
        "parameters": [*in_path, *(_parameter(parameter) for parameter in endpoint.parameters)],
        "responses": {
            **{str(status): _answer(status, text) for status, text in endpoint.answers.items()},
            "default": {"description": "a problem", "content": _PROBLEM},
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(endpoint.body)}
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    return f"{endpoint.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', endpoint.path).rstrip('_') or '_root'}"


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name, "in": parameter.where, "required": False, "description": parameter.description,
        "schema": {"type": parameter.kind},
    }  # fmt: skip


def _answer(status: int, text: str) -> dict[str, Any]:
    return {"description": text, "content": _PROBLEM} if status >= 400 else {"description": text}


def _content(body: Any) -> dict[str, Any]:
    if isinstance(body, type) and issubclass(body, BaseModel):
        return {"application/json": {"schema": body.model_json_schema()}}
    return {kind: {"schema": schema} for kind, schema in body.items()}
