"""The POST paths that backends answer: chats, also as responses, completions, embeddings.

They are plain ASGI handlers: these are the hot paths, and everything a framework could decode or
inject for them the pipeline does itself.
"""

from typing import Literal

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from backends.contract import Endpoint
from gateway.api.errors import error_parts
from gateway.api.reply import Reply, header_map
from gateway.errors import MethodNotAllowed
from gateway.pipeline import Pipeline
from gateway.responses.reply import ResponsesReply

PATHS: tuple[Endpoint, ...] = ("chat/completions", "completions", "embeddings")
RESPONSES: Literal["responses"] = "responses"


def chat_routes(pipeline: Pipeline) -> list[ASGIRouteHandler]:
    """One handler per path."""
    return [*(_route(pipeline, endpoint) for endpoint in PATHS), _responses_route(pipeline)]


def _route(pipeline: Pipeline, endpoint: Endpoint) -> ASGIRouteHandler:
    path = f"/v1/{endpoint}"

    @asgi(path, name=path, copy_scope=False)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(receive, send)
        if scope.get("method") != "POST":
            await _refuse(reply, path)
            return
        await pipeline.run(endpoint, header_map(scope), reply, scope.get("client"))

    return handler


def _responses_route(pipeline: Pipeline) -> ASGIRouteHandler:
    """A chat in other words."""
    drop_unknown = pipeline.parts.settings.server.unknown_fields == "drop"
    path = f"/v1/{RESPONSES}"

    @asgi(path, name=path, copy_scope=False)
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        reply = ResponsesReply(receive, send, drop_unknown=drop_unknown)
        if scope.get("method") != "POST":
            await _refuse(reply, path)
            return
        headers = header_map(scope)
        headers.pop("x-headgate-accept-restart", None)  # its events have no word for it
        client = scope.get("client")
        await pipeline.run("chat/completions", headers, reply, client, path=RESPONSES)

    return handler


async def _refuse(reply: Reply, path: str) -> None:
    error = MethodNotAllowed(f"{path} answers POST only.", allow="POST")
    status, headers, body = error_parts(error)
    await reply.whole(status, headers, body, b"application/json")
