"""/v1/models: what may be sent as `model`."""

from typing import Any

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler

from gateway.api.guards import caller_of, guard
from gateway.pipeline import Pipeline


def model_routes(pipeline: Pipeline) -> list[HTTPRouteHandler]:
    """The list, and one entry of it."""
    parts = pipeline.parts
    guards = [guard(pipeline, "inference")]
    created = int(parts.started_at)

    @get("/v1/models", guards=guards, summary="Models that may be asked for")
    async def models(request: Request[Any, Any, Any]) -> dict[str, Any]:
        only = caller_of(request).only
        return {"object": "list", "data": parts.router.names.entries(created, only)}

    @get("/v1/models/{name:path}", guards=guards, summary="One of them")
    async def model(request: Request[Any, Any, Any]) -> dict[str, Any]:
        name = request.path_params["name"].removeprefix("/")
        return parts.router.names.entry(name, created, caller_of(request).only)

    return [models, model]
