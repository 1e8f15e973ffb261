"""The body of POST /v1/responses as a struct."""

from typing import Any

from msgspec import Struct

from backends.wire import Sampling


class TextOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    """`text`: the form of the answer."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class Reasoning(Struct, kw_only=True, forbid_unknown_fields=True):
    """`reasoning`: effort is a capability; summaries are never written, whatever is asked for."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseStreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: bool = False


class ResponsesRequest(Sampling, kw_only=True):
    """POST /v1/responses. Nothing is stored, so nothing that refers to a stored answer is taken."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = None
    # accepted, without effect
    prompt_cache_retention: str | None = None
    # accepted where they ask for nothing
    background: bool | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    max_tool_calls: int | None = None
    prompt: dict[str, Any] | None = None
