"""Taking log-probabilities out of answers that carry more than the client asked for."""

from collections.abc import Mapping
from typing import Any


def hide_logprobs(body: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Leave in an answer, or a chunk of one, what the request `asked` for; in place."""
    wanted = asked.get("logprobs")
    chat = "messages" in asked
    top = (asked.get("top_logprobs") or 0) if chat else int(wanted or 0)
    shown = wanted is not None and (bool(wanted) or not chat)
    for choice in body.get("choices", ()):
        told = choice.get("logprobs")
        if told is None:
            continue
        if not shown:
            choice["logprobs"] = None
        elif isinstance(told.get("content"), list):
            for entry in told["content"]:
                entry["top_logprobs"] = entry.get("top_logprobs", [])[:top]
        elif isinstance(told.get("top_logprobs"), list):
            told["top_logprobs"] = [_likeliest(place, top) for place in told["top_logprobs"]]


def _likeliest(place: Mapping[str, float] | None, top: int) -> dict[str, float] | None:
    if place is None:
        return None
    return dict(sorted(place.items(), key=lambda pair: -pair[1])[:top])
