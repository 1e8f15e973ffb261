"""OpenAI's HTTP API around any `Backend`: the engine, the encoder and the echo share it."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec
from litestar import Litestar, Request, Response, get, post
from litestar.exceptions import HTTPException
from litestar.response import Stream
from litestar.types import ControllerRouterHandler

from backends.contract import Backend, Chunk, Endpoint, GenerateRequest
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendTimeoutError,
    BackendUnavailableError,
    ContextLengthError,
    InvalidRequestError,
)
from backends.wire import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    WireError,
    decode,
    error_body,
    usage_to_wire,
)

MAX_BODY_BYTES = 32 * 1024 * 1024
_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"
_PASSED_ON = ("traceparent", "tracestate")
_KINDS: dict[str, Any] = {
    "chat/completions": ChatCompletionRequest,
    "completions": CompletionRequest,
    "embeddings": EmbeddingRequest,
}

log = logging.getLogger(__name__)


def create_app(
    backend: Backend,
    *,
    models: Sequence[str],
    endpoints: Sequence[Endpoint],
    details: Callable[[], dict[str, Any]] = dict,
    routes: Sequence[ControllerRouterHandler] = (),
    started_s: float | None = None,
) -> Litestar:
    """An ASGI app that serves `endpoints` of `backend` under the names `models`.

    `details()` adds to /health; `routes` adds paths.
    """
    api = _Api(backend, models, details)

    @post([f"/v1/{endpoint}" for endpoint in endpoints], status_code=200)
    async def generate(request: Request[Any, Any, Any]) -> Response[Any]:
        return await api.generate(request)

    @get("/v1/models", sync_to_thread=False)
    def list_models() -> Response[Any]:
        return json_response({"object": "list", "data": [api.card(name) for name in models]})

    @get("/v1/models/{name:path}", sync_to_thread=False)
    def one_model(name: str) -> Response[Any]:
        return json_response(api.card(api.known(name.lstrip("/"))))

    @get("/health")
    async def health() -> Response[Any]:
        return await api.health()

    @get("/health/live", sync_to_thread=False)
    def live() -> Response[Any]:
        return json_response({"status": "ok"})

    @get("/health/ready")
    async def ready() -> Response[Any]:
        return await api.health()

    @get("/requests/{request_id:str}/usage")
    async def request_usage(request_id: str) -> Response[Any]:
        usage = await backend.usage_of(request_id)
        if usage is None:
            body = error_body(
                f"No request {request_id!r}, or it ended more than 60 s ago.",
                kind="invalid_request_error",
                code="not_found",
            )
            return json_response(body, 404)
        return json_response({"id": request_id, "usage": usage_to_wire(usage)})

    return Litestar(
        [generate, list_models, one_model, health, live, ready, request_usage, *routes],
        exception_handlers={Exception: _on_exception},
        request_max_body_size=MAX_BODY_BYTES,
        openapi_config=None,
        logging_config=None,
    )


class _Api:
    """The handlers' state."""

    def __init__(
        self, backend: Backend, models: Sequence[str], details: Callable[[], dict[str, Any]]
    ) -> None:
        self._backend = backend
        self._models = tuple(models)
        self._details = details
        self._started_s = time.monotonic()
        self._created = int(time.time())

    def known(self, model: Any) -> str:
        """The model's name if it is ours."""
        if model in self._models:
            return str(model)
        raise _ModelNotFoundError(
            f"The model {model!r} does not exist here; served: {', '.join(self._models)}.",
            param="model",
        )

    def card(self, name: str) -> dict[str, Any]:
        """An entry of /v1/models, with vLLM's max_model_len."""
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "headgate",
            **{k: v for k, v in self._details().items() if k == "max_model_len"},
        }

    async def health(self) -> Response[Any]:
        """/health and /health/ready: 200 if ready, else 503."""
        health = await self._backend.probe()
        body = {
            "status": "ok" if health.ready else "unready",
            **msgspec.to_builtins(health),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            **self._details(),
        }
        return json_response(body, 200 if health.ready else 503)

    async def generate(self, request: Request[Any, Any, Any]) -> Response[Any]:
        """Any endpoint that answers a body."""
        asked = self._read(request, await request.body())
        if asked.body.get("stream") is not True or asked.endpoint == "embeddings":
            whole = await _until_disconnect(request, self._backend.generate(asked))
            return json_response(whole.body)
        chunks = self._backend.stream(asked)
        # What is wrong with the request shows at the first chunk: still an HTTP status then.
        first = await anext(chunks, None)
        options = asked.body.get("stream_options") or {}
        events = _events(first, chunks, with_usage=bool(options.get("include_usage")))
        return Stream(events, media_type=_SSE, headers={"cache-control": "no-store"})

    def _read(self, request: Request[Any, Any, Any], content: bytes) -> GenerateRequest:
        endpoint: Any = request.scope["path"].removeprefix("/v1/")
        try:
            self.known(decode(_KINDS[endpoint], content).model)
        except WireError as error:
            raise InvalidRequestError(error.message, param=error.param) from None
        headers = request.headers
        return GenerateRequest(
            request_id=headers.get("x-request-id") or uuid.uuid4().hex,
            endpoint=endpoint,
            body=msgspec.json.decode(content),
            headers={name: headers[name] for name in _PASSED_ON if name in headers},
        )


class _ModelNotFoundError(InvalidRequestError):
    """404."""


async def _until_disconnect(request: Request[Any, Any, Any], answer: Any) -> Any:
    """The answer; cancelled as soon as the client goes away."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise BackendUnavailableError("The client went away.")
        return task.result()
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError, BackendError):
                    await pending


async def _disconnect(request: Request[Any, Any, Any]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    first: Chunk | None, chunks: Any, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream as server-sent events; an error after the first becomes an error event."""
    encode = msgspec.json.encode
    try:
        if first is not None:
            yield b"data: %b\n\n" % encode(first.body)
        async for chunk in chunks:
            if with_usage or chunk.usage is None:
                yield b"data: %b\n\n" % encode(chunk.body)
        yield b"data: [DONE]\n\n"
    except Exception as error:
        if not isinstance(error, BackendError):
            log.exception("stream_failed")
        yield b"data: %b\n\n" % encode(_error(error)[1])
    finally:
        await chunks.aclose()


def json_response(
    body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response[Any]:
    """A JSON response encoded by msgspec."""
    return Response(
        msgspec.json.encode(body), status_code=status, media_type=_JSON, headers=headers
    )


def _on_exception(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    status, body, headers = _error(error)
    if status == 500:
        log.error("request_failed path=%s", request.url.path, exc_info=error)
    return json_response(body, status, headers)


def _error(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """(status, OpenAI error body, headers) of anything raised."""
    invalid = "invalid_request_error"
    if isinstance(error, _ModelNotFoundError):
        return (
            404,
            error_body(error.message, kind=invalid, param="model", code="model_not_found"),
            {},
        )
    if isinstance(error, ContextLengthError):
        code = "context_length_exceeded"
        return 400, error_body(error.message, kind=invalid, param=error.param, code=code), {}
    if isinstance(error, InvalidRequestError):
        return 400, error_body(error.message, kind=invalid, param=error.param, code=invalid), {}
    if isinstance(error, HTTPException):
        status = error.status_code
        kind = invalid if status < 500 else "server_error"
        return status, error_body(error.detail, kind=kind, code=_HTTP_CODES.get(status, kind)), {}
    if not isinstance(error, BackendError):
        body = error_body(
            "Internal error; see the server's log.", kind="server_error", code="internal_error"
        )
        return 500, body, {}
    if isinstance(error, BackendUnavailableError):
        wait_s = error.retry_after_s if isinstance(error, BackendOverloadedError) else 1.0
        body = error_body(error.message, kind="server_error", code="unavailable")
        return 503, body, {"retry-after": f"{wait_s:g}"}
    status = 504 if isinstance(error, BackendTimeoutError) else 502
    if isinstance(error, BackendResponseError):
        status = error.status
    return status, error_body(error.message, kind="server_error", code="backend_error"), {}


_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
