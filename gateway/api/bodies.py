"""Bodies of the small paths: strict structs, errors in OpenAI's shape."""

import re
from typing import Any, TypeVar

import msgspec
from litestar import Request

from gateway.api.encodings import unpacked
from gateway.errors import InvalidRequest
from gateway.pipeline import Pipeline

_T = TypeVar("_T")
_WHERE = re.compile(r" - at `\$\.?([^`]*)`$")
_FIELD = re.compile(r"field `([^`]+)`")


async def read_body(request: Request[Any, Any, Any], kind: type[_T]) -> _T:
    """The request's JSON as `kind`.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        return msgspec.json.decode(await body_of(request) or b"{}", type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = _WHERE.search(text) or _FIELD.search(text)
        raise InvalidRequest(
            f"Invalid body: {text}.", param=where.group(1) or None if where else None
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}") from None


async def body_of(request: Request[Any, Any, Any]) -> bytes:
    """The request's body, unpacked. Raises InvalidRequest."""
    body = await request.body()
    encoding = request.headers.get("content-encoding")
    if encoding is None:
        return body
    pipeline: Pipeline = request.app.state["pipeline"]
    return unpacked(body, encoding, pipeline.parts.settings.server.max_body_bytes)


def parameter(request: Request[Any, Any, Any], name: str) -> str:
    """A query parameter that must be there. Raises InvalidRequest."""
    value: str | None = request.query_params.get(name)
    if not value:
        raise InvalidRequest(f"The query parameter {name!r} is missing.", param=name)
    return value
