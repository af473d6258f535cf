"""GET /openapi.json: what the routes take and give, as an OpenAPI 3.1 document made from the schemas in use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from longsight import __version__
from longsight.server.errors import dialect_of
from longsight.server.openapi_routes import ERRORS, EXAMPLES, JSON, OPERATIONS, SHAPES, Operation, Schema
from longsight.server.service import Service

HIDDEN = ("/openapi.json", "/", "/anthropic", "/anthropic/")
REFUSALS: Mapping[int, str] = {
    400: "The request is wrong; the message names what and where",
    401: "No API key, or a wrong one",
    403: "The key may not do this",
    404: "No such model, file or response, or nothing of the kind on this server",
    413: "The body is too large",
    429: "Too much at once; retry-after says when to come back",
    503: "Not now; retry-after says when to come back",
    504: "Not done by the time that the client waits for",
    529: "Overloaded; retry-after says when to come back",
}
# Of routes that openapi_routes does not know: anything may come.
UNKNOWN = Operation({JSON: {}, "text/event-stream": {}}, tuple(REFUSALS))


def document(routes: list[BaseRoute], models: Sequence[str], root_path: str = "") -> dict[str, Any]:
    """models: all names of the model; others are refused. root_path: the path that routes are under."""
    schemas: dict[str, Any] = {f"{name.capitalize()}Error": dict(schema) for name, schema in ERRORS.items()}
    paths: dict[str, Any] = {}
    for route in routes:
        if not isinstance(route, Route) or route.path in HIDDEN:
            continue
        path = re.sub(r":[a-z]+\}", "}", route.path)
        for method in sorted((route.methods or set()) - {"HEAD", "OPTIONS"}):
            paths.setdefault(path, {})[method.lower()] = _operation(route, path, method, schemas)
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] |= {"enum": [*models]}
            for example in schema.get("examples", ()):
                example["model"] = models[0]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Longsight", "version": __version__},
        "servers": [{"url": root_path or "/"}],
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": paths,
    }


def _operation(route: Route, path: str, method: str, schemas: dict[str, Any]) -> dict[str, Any]:
    known = OPERATIONS.get(f"{method} {path}", UNKNOWN)
    description = (route.endpoint.__doc__ or route.name).strip().split("\n")[0]
    error = {JSON: {"schema": _error(route.path)}}
    responses: dict[str, Any] = {
        str(status): {"description": REFUSALS[status], "content": error} for status in sorted(known.errors)
    }
    if known.answers:
        content = {kind: {"schema": schema} for kind, schema in known.answers.items()}
        links = {
            _id(*target.split()): {"operationId": _id(*target.split()), "parameters": {"id": "$response.body#/id"}}
            for target in known.leads_to
        }
        responses = {"200": {"description": "Done", "content": content, "links": links}, **responses}
    operation: dict[str, Any] = {
        "summary": description,
        "operationId": _id(method, path),
        "parameters": [
            *(_parameter(name, "path", {"type": "string"}, True) for name in route.param_convertors),
            *(_parameter(name, "query", schema, name in known.required) for name, schema in known.query.items()),
            *(_parameter(name, "header", schema, name in known.required) for name, schema in known.headers.items()),
        ],
        "responses": responses,
    }
    if known.body:
        content = {kind: {"schema": _schema(body, schemas)} for kind, body in known.body.items()}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _id(method: str, path: str) -> str:
    return f"{method.lower()}_{re.sub('[^a-z0-9]+', '_', path).strip('_')}"


def _error(path: str) -> Schema:
    """Of the path's protocol; of either, where a header tells them apart."""
    dialects = sorted({dialect_of({"path": path, "headers": h}) for h in ([], [(b"anthropic-version", b"")])})
    found = [{"$ref": f"#/components/schemas/{dialect.capitalize()}Error"} for dialect in dialects]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _parameter(name: str, place: str, schema: Schema, required: bool) -> dict[str, Any]:
    return {"name": name, "in": place, "required": required, "schema": schema}


def _schema(body: Schema | type[BaseModel], schemas: dict[str, Any]) -> Schema:
    """A class's own schema goes to the shared ones, and is referred to."""
    if not isinstance(body, type):
        return body
    found = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(found.pop("$defs", {}))
    for base in reversed(body.__mro__):
        found["properties"].update(SHAPES.get(base, {}))
    found["examples"] = [dict(EXAMPLES[body])] if body in EXAMPLES else []
    schemas[body.__name__] = found
    return {"$ref": f"#/components/schemas/{body.__name__}"}


async def openapi(request: Request) -> Response:
    """This document."""
    service: Service = request.app.state.service
    return JSONResponse(
        document(request.app.routes, [service.model_id, *service.aliases], request.scope.get("root_path", ""))
    )
