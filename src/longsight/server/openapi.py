"""GET /openapi.json: what the routes take and give, as an OpenAPI 3.1 document made from the schemas in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from longsight import __version__
from longsight.server.microscope import MicroscopeFields
from longsight.server.responses.fields import ResponsesFields
from longsight.server.schema import ChatFields, CommonFields, CompletionFields

BODIES: Mapping[str, type[CommonFields]] = {
    "/v1/chat/completions": ChatFields,
    "/v1/completions": CompletionFields,
    "/v1/longsight/microscope": MicroscopeFields,
    "/v1/responses": ResponsesFields,
    "/v1/responses/input_tokens": ResponsesFields,
}
# Routes whose bodies are checked by hand, and what is sure about them.
OBJECTS: Mapping[str, tuple[str, ...]] = {
    "/v1/messages": ("model", "messages"),
    "/anthropic/v1/messages": ("model", "messages"),
    "/v1/messages/count_tokens": ("model", "messages"),
    "/anthropic/v1/messages/count_tokens": ("model", "messages"),
}
HIDDEN = ("/openapi.json", "/", "/web", "/anthropic")
ERROR = {"$ref": "#/components/schemas/Error"}
ERRORS = {
    "400": "The request is wrong; the message names what and where",
    "401": "No API key, or a wrong one",
    "403": "The key may not do this",
    "404": "No such model, file or response",
    "413": "The body is too large",
    "429": "Too much at once; retry-after says when to come back",
    "503": "Not now; retry-after says when to come back",
    "529": "Overloaded (Anthropic routes); retry-after says when to come back",
}


def document(routes: list[BaseRoute]) -> dict[str, Any]:
    schemas: dict[str, Any] = {"Error": {"type": "object"}}
    paths: dict[str, Any] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path.startswith(HIDDEN[2]) or route.path in HIDDEN:
            continue
        path = route.path.replace(":path}", "}").replace(":int}", "}")
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, method, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Longsight", "version": __version__},
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _operation(route: Route, path: str, method: str, schemas: dict[str, Any]) -> dict[str, Any]:
    description = (route.endpoint.__doc__ or route.name).strip().split("\n")[0]
    answer = {
        "description": "Done",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {}}},
    }
    failures = {
        status: {"description": words, "content": {"application/json": {"schema": ERROR}}}
        for status, words in ERRORS.items()
    }
    operation: dict[str, Any] = {
        "summary": description,
        "operationId": f"{method.lower()}_{path.strip('/').replace('/', '_').replace('{', '').replace('}', '')}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ],
        "responses": {"200": answer, **failures},
    }
    if path in BODIES:
        model = BODIES[path]
        found = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(found.pop("$defs", {}))
        schemas[model.__name__] = found
        operation["requestBody"] = _body({"$ref": f"#/components/schemas/{model.__name__}"})
    elif path in OBJECTS:
        operation["requestBody"] = _body({"type": "object", "required": list(OBJECTS[path])})
    return operation


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


async def openapi(request: Request) -> Response:
    """This document."""
    return JSONResponse(document(request.app.routes))
