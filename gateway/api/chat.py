"""The POST paths that backends answer: chats, also as responses, completions, embeddings.

They are plain ASGI functions: these are the hot paths, and everything a framework could decode or
inject for them the pipeline does itself. `gateway/app.py` calls them past Litestar's layers.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from backends.contract import Endpoint
from gateway.api.errors import error_parts
from gateway.api.reply import Reply, header_map
from gateway.api.translate import gateway_error
from gateway.errors import MethodNotAllowed
from gateway.pipeline import Pipeline
from gateway.responses.reply import ResponsesReply

Handler = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
PATHS: tuple[Endpoint, ...] = ("chat/completions", "completions", "embeddings")
RESPONSES: Literal["responses"] = "responses"


def chat_handlers(pipeline: Pipeline) -> dict[str, Handler]:
    """One per path."""
    found = {f"/v1/{endpoint}": _handler(pipeline, endpoint) for endpoint in PATHS}
    return {**found, f"/v1/{RESPONSES}": _responses_handler(pipeline)}


def chat_routes(handlers: Mapping[str, Handler]) -> list[ASGIRouteHandler]:
    """The same as routes of Litestar."""
    return [asgi(path, name=path, copy_scope=False)(one) for path, one in handlers.items()]


def _handler(pipeline: Pipeline, endpoint: Endpoint) -> Handler:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply(receive, send)
        try:
            _check_method(scope)
            await pipeline.run(endpoint, header_map(scope), reply, scope.get("client"))
        except Exception as error:
            await _refuse(reply, error)

    return handler


def _responses_handler(pipeline: Pipeline) -> Handler:
    """A chat in other words."""
    drop_unknown = pipeline.parts.settings.server.unknown_fields == "drop"

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        reply = ResponsesReply(receive, send, drop_unknown=drop_unknown)
        try:
            _check_method(scope)
            headers = header_map(scope)
            headers.pop("x-headgate-accept-restart", None)  # its events have no word for it
            client = scope.get("client")
            await pipeline.run("chat/completions", headers, reply, client, path=RESPONSES)
        except Exception as error:
            await _refuse(reply, error)

    return handler


def _check_method(scope: Scope) -> None:
    if scope.get("method") != "POST":
        raise MethodNotAllowed(f"{scope['path']} answers POST only.", allow="POST")


async def _refuse(reply: Reply, error: Exception) -> None:
    """What the pipeline could not tell the client itself."""
    if reply.started:
        raise error
    status, headers, body = error_parts(gateway_error(error))
    await reply.whole(status, headers, body, b"application/json")
