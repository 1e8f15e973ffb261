"""Tools told in plain words, for models whose chat template has no place for them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from backends.errors import InvalidRequestError
from backends.tools.formats import ToolFormat


def described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as templates know them: with parameters always, and without what only we read."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequestError("A tool has no function.", param="tools")
    told = {name: value for name, value in function.items() if name != "strict" and value}
    told.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": told}


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
    lines.append(spoken.spell([("name of the function", "{…}")]))
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
