"""Lines of batches: read and checked on the way in, written on the way out."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

MAX_LINES = 50_000
MAX_ERRORS = 100
"""Wrong lines that are named; the rest would say the same."""
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


class Line(Struct, frozen=True, kw_only=True):
    """One request of a batch."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class _Done(Struct, frozen=True, kw_only=True):
    """What is read again of a line of output."""

    custom_id: str


_line = msgspec.json.Decoder(Line)
_done = msgspec.json.Decoder(_Done)


def read_lines(data: bytes, endpoint: str) -> tuple[list[Line], list[dict[str, Any]]]:
    """The requests of an input file, and what is wrong with it in OpenAI's words."""
    lines: list[Line] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(data.splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = _line.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            errors.append(_error("invalid_json_line", f"The line cannot be read: {error}", number))
            continue
        problem = _problem(line, endpoint, seen)
        if problem is not None:
            errors.append(_error(*problem[:2], number, problem[2]))
        seen.add(line.custom_id)
        lines.append(line)
    if not lines and not errors:
        errors.append(_error("empty_file", "The input file has no lines.", None))
    if len(lines) > MAX_LINES:
        words = f"The input file has {len(lines)} lines; allowed: {MAX_LINES}."
        errors.append(_error("too_many_tasks", words, None))
    return lines, errors[:MAX_ERRORS]


def _problem(line: Line, endpoint: str, seen: set[str]) -> tuple[str, str, str] | None:
    if not line.custom_id or line.custom_id in seen:
        words = f"custom_id {line.custom_id!r} is empty or was there before."
        return "duplicate_custom_id", words, "custom_id"
    if line.method != "POST":
        return "invalid_method", f"method is {line.method!r}; allowed: POST.", "method"
    if line.url != endpoint:
        return "mismatched_endpoint", f"url is {line.url!r}; the batch's is {endpoint!r}.", "url"
    if line.body.get("stream"):
        return "invalid_request", "stream = true is not possible in a batch.", "body.stream"
    return None


def _error(code: str, message: str, line: int | None, param: str | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": param, "line": line}


def answered(custom_id: str, status: int, request_id: str, body: Any) -> bytes:
    """A line of the output or error file."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _written(custom_id, request_id, response, None)


def left_out(custom_id: str, code: str, message: str) -> bytes:
    """A line of the error file for a request that was never made."""
    return _written(custom_id, custom_id, None, {"code": code, "message": message})


def _written(custom_id: str, request_id: str, response: Any, error: Any) -> bytes:
    line = {
        "id": f"batch_req_{request_id}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return msgspec.json.encode(line) + b"\n"


def custom_ids(output: bytes) -> Iterator[str]:
    """Whose lines stand in an output or error file."""
    for text in output.splitlines():
        yield _done.decode(text).custom_id
