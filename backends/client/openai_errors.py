"""What an OpenAI-compatible server's refusal means: HTTP status and body to a BackendError."""

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from backends.client.http_replica import CONNECT_TIMEOUT_S, never_connected, transport_cause
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendRateLimitedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    ContextLengthError,
    InvalidRequestError,
)

_TOO_LONG = (
    "context_length_exceeded",
    "exceed_context_size",
    "maximum context length",
    "context window",
)


def error_from_response(
    backend: str, status: int, headers: Mapping[str, str], body: bytes
) -> BackendError:
    """The error that a response with a status other than 200 stands for."""
    message, param, code = _read_error(body)
    text = message or f"HTTP {status}"
    if status in (401, 403):
        # Our key, not the caller's: never their 401.
        return BackendResponseError(
            f"backend {backend!r} refused our credentials ({status}: {text}); check its API key",
            backend=backend,
            status=status,
        )
    if status == 404:
        return BackendResponseError(
            f"backend {backend!r} does not know the path or the model ({text}); check base_urls "
            "and model",
            backend=backend,
            status=status,
        )
    if status == 429 and "insufficient_quota" in code:
        return BackendResponseError(
            f"backend {backend!r} has no money left on our account ({text}); waiting will not help",
            backend=backend,
            status=status,
        )
    if status in (429, 503, 529):
        refused = BackendOverloadedError if status == 503 else BackendRateLimitedError
        return refused(
            f"backend {backend!r} is overloaded ({status}: {text})",
            backend=backend,
            retry_after_s=retry_after_s(headers),
        )
    if status in (408, 504):
        return BackendTimeoutError(f"backend {backend!r} timed out ({text})", backend=backend)
    if 400 <= status < 500:
        lowered = f"{code} {text}".lower()
        kind = InvalidRequestError
        if any(words in lowered for words in _TOO_LONG):
            kind = ContextLengthError
        return kind(text, backend=backend, param=param)
    return BackendResponseError(
        f"backend {backend!r} answered {status}: {text}", backend=backend, status=status
    )


def retry_after_s(headers: Mapping[str, str], default: float = 1.0) -> float:
    """Seconds from `retry-after-ms` or `retry-after` (seconds or a date), 0 to one hour."""
    try:
        if headers.get("retry-after-ms"):
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(headers.get("retry-after", default))
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(headers["retry-after"])
        except ValueError:
            return default
        seconds = date.timestamp() - time.time()
    return min(max(seconds, 0.0), 3600.0)


def _read_error(body: bytes) -> tuple[str, str | None, str]:
    """(message, param, code) of an error body in OpenAI's, vLLM's or FastAPI's shape."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode("utf-8", "replace").strip(), None, ""
    return describe_error(decoded)


def transport_error(backend: str, error: BaseException) -> BackendError:
    """What went wrong before the answer was complete."""
    cause = transport_cause(error)
    if never_connected(error):
        reason = f"not within {CONNECT_TIMEOUT_S:g} s"
        if isinstance(cause, aiohttp.ClientConnectorError):
            reason = cause.os_error.strerror or str(cause.os_error)
        return BackendUnavailableError(
            f"backend {backend!r} accepts no connection ({reason}); is it running?",
            backend=backend,
        )
    if isinstance(cause, TimeoutError):
        return BackendTimeoutError(f"backend {backend!r} fell silent", backend=backend)
    if isinstance(cause, aiohttp.ClientResponseError | aiohttp.InvalidURL):
        return BackendResponseError(
            f"backend {backend!r} does not speak HTTP: {cause!r}", backend=backend
        )
    return BackendUnavailableError(
        f"backend {backend!r} closed the connection without a whole answer: {cause!r}",
        backend=backend,
    )


def describe_error(decoded: Any) -> tuple[str, str | None, str]:
    """(message, param, code) of a decoded error object."""
    if isinstance(decoded, dict):
        error = decoded.get("error", decoded)
        if isinstance(error, str):
            return error, None, ""
        if isinstance(error, dict):
            message = error.get("message") or error.get("detail") or ""
            param = error.get("param")
            code = f"{error.get('code') or ''} {error.get('type') or ''}"
            return str(message), param if isinstance(param, str) else None, code.strip()
    return "", None, ""


def timed_out(backend: str, timeout_s: float) -> BackendTimeoutError:
    """The whole answer did not come in time."""
    return BackendTimeoutError(
        f"backend {backend!r} did not answer within {timeout_s:g} s", backend=backend
    )


def broken_off(backend: str, why: str) -> BackendStreamError:
    """The answer began and did not end."""
    return BackendStreamError(
        f"backend {backend!r} broke off in the middle of its answer: {why}", backend=backend
    )
