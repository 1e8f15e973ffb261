"""The POST paths that backends answer: chats, completions, embeddings.

They are plain ASGI handlers: these are the hot paths, and everything a framework could decode or
inject for them the pipeline does itself.
"""

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from backends.contract import Endpoint
from gateway.api.errors import error_parts
from gateway.api.reply import Reply, header_map
from gateway.errors import MethodNotAllowed
from gateway.pipeline import Pipeline

PATHS: tuple[Endpoint, ...] = ("chat/completions", "completions", "embeddings")


def chat_routes(pipeline: Pipeline) -> list[ASGIRouteHandler]:
    """One handler per path."""
    return [_route(pipeline, endpoint) for endpoint in PATHS]


def _route(pipeline: Pipeline, endpoint: Endpoint) -> ASGIRouteHandler:
    path = f"/v1/{endpoint}"

    @asgi(path, name=path, copy_scope=False)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(receive, send)
        if scope.get("method") != "POST":
            error = MethodNotAllowed(f"{path} answers POST only.", allow="POST")
            status, headers, body = error_parts(error)
            await reply.whole(status, headers, body, b"application/json")
            return
        await pipeline.run(endpoint, header_map(scope), reply, scope.get("client"))

    return handler
