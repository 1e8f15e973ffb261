"""Cache keys: what must be equal for an answer to be reused.

A key holds the namespace (team), the canonical request with every field that affects the output,
the policy's cap on the answer, and the chosen backend with its model revision. It never holds
budget, load or time.
"""

import hashlib
from typing import Any

import msgspec

from backends.wire import ChatCompletionRequest, CompletionRequest, Message

WireRequest = ChatCompletionRequest | CompletionRequest

_IGNORED = frozenset(
    (
        "model",  # replaced by the chosen backend and its revision
        "stream",
        "stream_options",
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "store",
        "service_tier",
        "priority",
        "prediction",  # verified as a draft, never changes the answer
        "max_tokens",
        "max_completion_tokens",  # both: see _max_tokens
    )
)
_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "min_tokens": 0,
    "ignore_eos": False,
    "logprobs": False,
    "include_reasoning": True,
    "tool_choice": None,
}
_ORDERED = frozenset(("response_format", "structured_outputs", "tools", "functions"))
"""Objects whose order counts: answers have their properties in the order of the schema."""
_PREFIX = "headgate:1"
_encode = msgspec.json.Encoder(order="sorted").encode
_MAX_SEMANTIC_CHARS = 1_000
"""The encoder reads 256 word pieces; a longer question would be judged by its beginning."""


def output_fields(request: WireRequest) -> dict[str, Any]:
    """The fields that affect the output; a field sent with its default counts as left out."""
    fields: dict[str, Any] = {}
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if name in _IGNORED or value is None or value == _DEFAULTS.get(name):
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]
        elif name in _ORDERED:
            value = msgspec.json.encode(value)
        fields[name] = value
    return fields


def max_tokens(request: WireRequest, cap: int | None) -> int | None:
    """The answer's bound: the smaller of the client's and the policy's."""
    own = request.max_tokens
    if isinstance(request, ChatCompletionRequest) and request.max_completion_tokens is not None:
        own = request.max_completion_tokens
    bounds = [bound for bound in (own, cap) if bound is not None]
    return min(bounds) if bounds else None


def is_repeatable(request: WireRequest, *, sampled: bool) -> bool:
    """Whether a stored answer may stand for a fresh one.

    n > 1 asks for different answers; temperature > 0 without a seed asks for a fresh draw, unless
    the operator set `sampled`.
    """
    if (request.n or 1) > 1:
        return False
    temperature = 1.0 if request.temperature is None else request.temperature
    return sampled or temperature == 0.0 or request.seed is not None


def exact_key(
    namespace: str, request: WireRequest, backend: str, revision: str, cap: int | None
) -> str:
    """The key of the exact cache."""
    kind = type(request).__name__
    parts = [kind, backend, revision, max_tokens(request, cap), output_fields(request)]
    return f"{_PREFIX}:exact:{namespace}:{_digest(parts)}"


def semantic_text(request: WireRequest) -> str | None:
    """The last user turn, if it is plain text that the encoder reads whole; else None.

    With tools, too: calls name what the question named, and what they do depends on it.
    """
    if not isinstance(request, ChatCompletionRequest) or not request.messages:
        return None
    if request.tools or request.functions:
        return None
    last = request.messages[-1]
    if last.role != "user" or not _is_plain(last):
        return None
    text = last.text().strip()
    return text if 0 < len(text) <= _MAX_SEMANTIC_CHARS else None


def semantic_log(
    namespace: str,
    request: ChatCompletionRequest,
    backend: str,
    revision: str,
    cap: int | None,
    encoder_revision: str,
) -> str:
    """The log of questions that share everything but the last user turn."""
    fields = output_fields(request)
    fields["messages"] = request.messages[:-1]
    fields["name"] = request.messages[-1].name
    parts = [backend, revision, max_tokens(request, cap), fields, encoder_revision]
    return f"{_PREFIX}:semantic:{namespace}:{_digest(parts)}"


def namespace_prefixes(namespace: str) -> tuple[str, str]:
    """What every key of a namespace begins with: exact, semantic."""
    return f"{_PREFIX}:exact:{namespace}:", f"{_PREFIX}:semantic:{namespace}:"


def _is_plain(message: Message) -> bool:
    if isinstance(message.content, list):
        return all(part.get("type") == "text" for part in message.content)
    return True


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(_encode(parts)).hexdigest()
