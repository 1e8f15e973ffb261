"""Tools, calls and results as chat templates take them; in plain words where one knows of none."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from backends.errors import InvalidRequestError
from backends.tools.formats import SHORT_ID, ToolFormat


def described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates know them: with all that they name, and without what only we read."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError("A tool has no function.", param="tools")
    told = {name: value for name, value in function.items() if name != "strict"}
    told["description"] = told.get("description") or ""
    told["parameters"] = told.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": told}


def with_names(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose results name their functions, which some templates ask for."""
    called = {
        call.get("id"): call["function"]["name"]
        for message in messages
        for call in message.get("tool_calls", ())
    }
    return [
        {"name": called[message["tool_call_id"]], **message}
        if message.get("tool_call_id") in called
        else dict(message)
        for message in messages
    ]


def with_short_ids(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls have ids of nine letters or digits, whoever made the calls."""
    short = []
    for message in messages:
        plain = dict(message)
        if "tool_call_id" in plain:
            plain["tool_call_id"] = _short(plain["tool_call_id"])
        if "tool_calls" in plain:
            calls = plain["tool_calls"]
            plain["tool_calls"] = [{**call, "id": _short(call.get("id", ""))} for call in calls]
        short.append(plain)
    return short


def _short(name: str) -> str:
    if len(name) == SHORT_ID and name.isalnum() and name.isascii():
        return name
    return hashlib.sha256(name.encode()).hexdigest()[:SHORT_ID]


def spelled_out(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    spoken: ToolFormat,
) -> list[dict[str, Any]]:
    """Messages of plain text only: tools in the system's, calls in the assistant's, results in the
    user's."""
    plain = [_spelled(message, spoken) for message in messages]
    if not tools:
        return plain
    lines = ["You can call these functions:"]
    lines += [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    lines.append("To call one, answer with nothing but:")
    lines.append(spoken.spell([("name of the function", '{"name of a parameter": "its value"}')]))
    told = "\n".join(lines)
    if plain and plain[0]["role"] == "system":
        own = plain[0]["content"]
        return [{**plain[0], "content": f"{own}\n\n{told}" if own else told}, *plain[1:]]
    return [{"role": "system", "content": told}, *plain]


def _spelled(message: Mapping[str, Any], spoken: ToolFormat) -> dict[str, Any]:
    if message["role"] in ("tool", "function"):
        return {"role": "user", "content": f"Result of the call:\n{message['content']}"}
    if "tool_calls" not in message:
        return dict(message)
    functions = [call["function"] for call in message["tool_calls"]]
    calls = [
        (function["name"], json.dumps(function["arguments"], ensure_ascii=False))
        for function in functions
    ]
    parts = (message["content"], spoken.spell(calls))
    return {"role": message["role"], "content": "\n".join(filter(None, parts))}
