"""What can be read off a request without a model: sizes, turns, wants, needs, the text to classify.

Prompt tokens come twice. The *estimate* is calibrated on common byte-level BPE vocabularies: about
four characters a token in plain English, more for other scripts, four per message for the chat
template; it is what policies, budgets and reports call `prompt_tokens`, and may be 30 % off. The
*bound* never lies below the truth: a byte-level (or byte-fallback) vocabulary makes at most one
token of each UTF-8 byte, and templates add at most `MESSAGE_OVERHEAD` a message and
`PROMPT_OVERHEAD` a prompt.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from backends.wire import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    split_inputs,
)

Request = ChatCompletionRequest | CompletionRequest | EmbeddingRequest

CHARS_PER_TOKEN = 4.0
EXTRA_BYTES_PER_TOKEN = 2.5
"""Bytes beyond one a character: accents cost little, other scripts about a token a letter."""
MESSAGE_TOKENS = 4
MESSAGE_OVERHEAD = 24
"""Role, separators and special tokens of one message, at most."""
PROMPT_OVERHEAD = 128
"""What a template puts before and after the conversation, at most."""


class Content(Struct, frozen=True, kw_only=True):
    """The cheap facts of one request."""

    text: str
    """What the classifier reads: the last user turn, the prompt or the first input."""
    prompt_tokens: int
    """The estimate."""
    prompt_tokens_bound: int
    """Never less than the truth, for the longest prompt of the request."""
    turns: int
    wants: frozenset[str]
    needs: frozenset[str]
    """Capability fields that are in use."""


def read(request: Request) -> Content:
    """The cheap facts of a request. Raises WireError for a prompt of mixed kinds."""
    if isinstance(request, ChatCompletionRequest):
        return _read_chat(request)
    field = "prompt" if isinstance(request, CompletionRequest) else "input"
    inputs = split_inputs(getattr(request, field), field)
    sizes = [_size(text) if isinstance(text, str) else (len(text), len(text)) for text in inputs]
    first = next((text for text in inputs if isinstance(text, str)), "")
    wants = frozenset[str]()
    needs = frozenset[str]()
    if isinstance(request, CompletionRequest):
        wants = frozenset({"logprobs"}) if request.logprobs is not None else wants
        needs = _completion_needs(request)
    return Content(
        text=first,
        prompt_tokens=sum(estimate for estimate, _ in sizes),
        prompt_tokens_bound=max((bound for _, bound in sizes), default=0) + PROMPT_OVERHEAD,
        turns=1,
        wants=wants,
        needs=needs,
    )


def _size(text: str) -> tuple[int, int]:
    """(estimated tokens, UTF-8 bytes) of a text."""
    chars = len(text)
    size = chars if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    tokens = chars / CHARS_PER_TOKEN + (size - chars) / EXTRA_BYTES_PER_TOKEN
    return max(1, round(tokens)) if chars else 0, size


def _read_chat(request: ChatCompletionRequest) -> Content:
    text = ""
    turns = estimate = 0
    bound = PROMPT_OVERHEAD
    needs: set[str] = set()
    for message in request.messages:
        content = message.text()
        tokens, size = _size(content)
        estimate += tokens + MESSAGE_TOKENS
        bound += size + MESSAGE_OVERHEAD
        if message.role == "user":
            turns += 1
            text = content or text
        elif message.role == "tool" or message.tool_calls:
            needs.add("tools")
        elif message.role == "function" or message.function_call:
            needs.add("functions")
        if message.name:
            bound += len(message.name.encode("utf-8", "surrogatepass")) + 8
        if message.tool_calls or message.tool_call_id:
            size = _json_bytes([message.tool_calls, message.tool_call_id])
            estimate, bound = estimate + size // 4, bound + size
        if isinstance(message.content, list):
            needs.update(_part_needs(message.content))
    if request.tools or request.functions:
        size = 2 * _json_bytes([request.tools, request.functions])  # templates indent the schema
        estimate, bound = estimate + size // 8, bound + size
    needs |= _chat_needs(request)
    # Whoever must call need not know by itself when to.
    if "tool_choice" in needs and not _leaves_open(request.tool_choice):
        needs.discard("tools")
    if "function_call" in needs:
        needs.discard("functions")
    if not text and request.messages:
        text = request.messages[-1].text()
    return Content(
        text=text,
        prompt_tokens=estimate,
        prompt_tokens_bound=bound,
        turns=turns,
        wants=_chat_wants(request),
        needs=frozenset(needs),
    )


def _leaves_open(choice: str | Mapping[str, Any] | None) -> bool:
    """Whether a choice that is more than a word leaves open if there are calls."""
    allowed = choice.get("allowed_tools") if isinstance(choice, Mapping) else None
    return isinstance(allowed, Mapping) and allowed.get("mode") == "auto"


def _json_bytes(value: Any) -> int:
    return len(msgspec.json.encode(value))


def _part_needs(parts: list[dict[str, Any]]) -> set[str]:
    kinds = {str(part.get("type", "text")) for part in parts}
    return kinds - {"text", "refusal"}


def _chat_wants(request: ChatCompletionRequest) -> frozenset[str]:
    wants = set()
    form = request.structured_outputs or {}
    own = form.get("json") is not None or form.get("json_object")
    if own or _format(request) in ("json_object", "json_schema"):
        wants.add("json")
    if request.tools or request.functions:
        wants.add("tools")
    if request.logprobs:
        wants.add("logprobs")
    return frozenset(wants)


def _format(request: ChatCompletionRequest) -> str:
    return str((request.response_format or {}).get("type", "text"))


def _chat_needs(request: ChatCompletionRequest) -> set[str]:
    """Capability fields whose value asks for something beyond plain text."""
    needs = set()
    if request.tool_choice not in (None, "none", "auto"):
        needs.add("tool_choice")
    if request.tools:
        needs.add("tools")
        if request.parallel_tool_calls is not None:
            needs.add("parallel_tool_calls")
    if _format(request) != "text":
        needs.add("response_format")
    if request.structured_outputs is not None:
        needs.add("structured_outputs")
    if request.functions:
        needs.add("functions")
    if request.function_call not in (None, "none", "auto"):
        needs.add("function_call")
    if request.modalities not in (None, [], ["text"]):
        needs.add("modalities")
    for name in ("reasoning_effort", "audio", "verbosity", "web_search_options"):
        if getattr(request, name) is not None:
            needs.add(name)
    if request.include_reasoning is False:
        needs.add("include_reasoning")
    if request.chat_template_kwargs:
        needs.add("chat_template_kwargs")
    return needs


def _completion_needs(request: CompletionRequest) -> frozenset[str]:
    needs = set()
    if request.suffix:
        needs.add("suffix")
    if request.echo:
        needs.add("echo")
    if request.structured_outputs is not None:
        needs.add("structured_outputs")
    if request.best_of is not None and request.best_of > (request.n or 1):
        needs.add("best_of")
    return frozenset(needs)
