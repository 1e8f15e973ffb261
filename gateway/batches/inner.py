"""A request that no client holds: through the whole pipeline, its answer kept in memory."""

import asyncio
from typing import Any

import msgspec
from msgspec import Struct

from backends.contract import Endpoint
from gateway.api.reply import Reply
from gateway.errors import InvalidApiKey
from gateway.ledger.keys import Caller
from gateway.pipeline import Pipeline
from gateway.responses.reply import ResponsesReply

_ENDPOINTS: dict[str, Endpoint] = {
    "chat/completions": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "chat/completions",
}
_RETRIED = frozenset({429, 503})


class Answered(Struct, frozen=True, kw_only=True):
    """What came of it."""

    status: int
    request_id: str
    body: bytes
    """JSON."""
    retry_after_s: float | None = None
    """Nothing came of it yet: a limit, or nobody to answer."""


async def ask(pipeline: Pipeline, url: str, body: bytes, caller: Caller | None) -> Answered:
    """Answer one request of a batch.

    Args:
        url: one of `lines.ENDPOINTS`.
        caller: None: his key is gone, and nothing is answered.
    """
    if caller is None:
        error = InvalidApiKey("The API key of this batch is expired or revoked.")
        return Answered(status=error.status, request_id="", body=msgspec.json.encode(error.body()))
    path = url.removeprefix("/v1/")
    exchange = _Exchange(body)
    reply = Reply(exchange.receive, exchange.send)
    if path == "responses":
        drop = pipeline.parts.settings.server.unknown_fields == "drop"
        reply = ResponsesReply(exchange.receive, exchange.send, drop_unknown=drop)
    await pipeline.run(_ENDPOINTS[path], {}, reply, path=path, caller=caller, in_batch=True)
    return exchange.answered()


class _Exchange:
    """The ASGI side: one whole body in, one whole response out, a client who stays."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._answer = b""

    async def receive(self) -> Any:
        if self._body is None:
            await asyncio.get_running_loop().create_future()  # until cancelled: it never leaves
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = dict(message["headers"])
        else:
            self._answer += message["body"]

    def answered(self) -> Answered:
        again = self._headers.get(b"retry-after")
        never = self._headers.get(b"x-should-retry") == b"false"
        waits = self._status in _RETRIED and again is not None and not never
        return Answered(
            status=self._status,
            request_id=self._headers.get(b"x-headgate-request-id", b"").decode(),
            body=self._answer,
            retry_after_s=float(again) if waits and again is not None else None,
        )
