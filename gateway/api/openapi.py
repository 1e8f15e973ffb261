"""`GET /schema`: OpenAPI 3.1 of what the gateway answers, made from the structs it decodes with."""

from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Response, get
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler

from gateway.api.chat import PATHS, RESPONSES
from gateway.api.guards import guard
from gateway.api.translate import KINDS
from gateway.pipeline import Pipeline
from gateway.responses.wire import ResponsesRequest

_SUMMARIES = {
    "chat/completions": "Answer a chat",
    "completions": "Continue a text",
    "embeddings": "Vectors of texts",
    "responses": "Answer a chat, as items and events",
}
_HEADERS = {
    "x-headgate-cache": "off, exact, semantic or refresh",
    "x-headgate-policy": "The policy that decides on this request",
    "x-headgate-max-cost-usd": "Refuse what may cost more",
    "x-headgate-deadline-ms": "Give up after this long",
    "x-headgate-tags": "name=value pairs, reported on and matched by policies",
}


def schema_routes(
    pipeline: Pipeline, routes: Sequence[ASGIRouteHandler | HTTPRouteHandler], version: str
) -> list[HTTPRouteHandler]:
    """/schema, describing `routes`."""
    document = openapi(routes, version)

    @get("/schema", guards=[guard(pipeline)], summary="This document")
    async def schema() -> Response[dict[str, Any]]:
        return Response(document)

    return [schema]


def openapi(routes: Sequence[ASGIRouteHandler | HTTPRouteHandler], version: str) -> dict[str, Any]:
    """The OpenAPI document."""
    names = (*PATHS, RESPONSES)
    kinds = [*(KINDS[endpoint] for endpoint in PATHS), ResponsesRequest]
    schemas, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, Any] = {}
    for name, schema in zip(names, schemas, strict=True):
        paths[f"/v1/{name}"] = {
            "post": {
                "summary": _SUMMARIES[name],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                },
                "parameters": [
                    {
                        "name": header,
                        "in": "header",
                        "required": False,
                        "description": text,
                        "schema": {"type": "string"},
                    }
                    for header, text in _HEADERS.items()
                ],
                "responses": _responses(),
            }
        }
    for route in routes:
        if not isinstance(route, HTTPRouteHandler):
            continue
        for path in route.paths:
            plain = path.replace(":str", "").replace(":path", "")
            for method in route.http_methods:
                paths.setdefault(plain, {})[method.lower()] = _operation(route, plain)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headgate", "version": version},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": components},
    }


def _operation(route: HTTPRouteHandler, path: str) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    operation: dict[str, Any] = {"summary": route.summary or "", "responses": _responses()}
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    return operation


def _responses() -> dict[str, Any]:
    return {
        "200": {"description": "Done."},
        "default": {"description": "Refused or failed: an object `error` in OpenAI's shape."},
    }
