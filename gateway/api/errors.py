"""Every error in OpenAI's shape, also those that Litestar raises itself."""

import contextlib
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.types import ExceptionHandlersMap

from backends.wire import WireError, error_body
from gateway.api.translate import gateway_error
from gateway.errors import (
    Forbidden,
    GatewayError,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    RequestTooLarge,
)

log = structlog.get_logger(__name__)

RawHeaders = list[tuple[bytes, bytes]]


def error_parts(error: GatewayError) -> tuple[int, RawHeaders, bytes]:
    """Status, extra headers and JSON body of an error."""
    headers = [(k.encode(), v.encode()) for k, v in error.headers().items()]
    return error.status, headers, msgspec.json.encode(error.body())


def error_response(error: GatewayError) -> Response[Any]:
    """The error as a Litestar response."""
    return Response(error.body(), status_code=error.status, headers=error.headers())


def error_handlers() -> ExceptionHandlersMap:
    """Litestar's map from exception to handler."""
    return {HTTPException: _http_exception, Exception: _exception}


def _exception(_request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    return error_response(gateway_error(error))


def _http_exception(request: Request[Any, Any, Any], error: HTTPException) -> Response[Any]:
    path = request.scope["path"]
    known: dict[int, GatewayError] = {
        401: InvalidApiKey(error.detail),
        403: Forbidden(error.detail),
        404: NotFound(f"There is no {path!r} here; GET /schema lists what there is."),
        405: MethodNotAllowed(
            f"{path} does not answer {request.scope['method']}.",
            allow=_methods(request) if error.status_code == 405 else "",
        ),
        413: RequestTooLarge("The request body is too large."),
    }
    if error.status_code in known:
        return error_response(known[error.status_code])
    if error.status_code == 400:
        return error_response(_bad_request(error))
    log.error("request_crashed", path=path, exc_info=error)
    return Response(
        error_body(error.detail, kind="api_error", code="internal_error"),
        status_code=error.status_code,
    )


def _methods(request: Request[Any, Any, Any]) -> str:
    """What the path does answer, as `Allow` has it."""
    found = []
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        with contextlib.suppress(HTTPException):
            request.app.asgi_router.handle_routing(path=request.scope["path"], method=method)
            found += ["GET", "HEAD"] if method == "GET" else [method]
    return ", ".join(found)


def _bad_request(error: HTTPException) -> InvalidRequest:
    """Litestar's validation errors name the field in `extra`."""
    cause = error.__cause__
    if isinstance(cause, WireError):
        return InvalidRequest(cause.message, param=cause.param)
    extra = error.extra if isinstance(error, ValidationException) else None
    first = extra[0] if isinstance(extra, list) and extra else {}
    if isinstance(first, dict) and first.get("message"):
        key = str(first.get("key") or "") or None
        where = f"{key}: " if key else ""
        return InvalidRequest(f"Invalid value for {where}{first['message']}.", param=key)
    return InvalidRequest(error.detail)
