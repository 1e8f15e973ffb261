"""The body of POST /v1/responses as a struct."""

from typing import Any

from msgspec import Struct

from backends.wire import Wire


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


class ResponsesRequest(Wire, kw_only=True):
    """POST /v1/responses. Nothing is stored, so nothing that refers to a stored answer is taken."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: int | None = None
    include: list[str] | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    # vLLM's extra sampling fields
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    # accepted, without effect
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    # accepted where they ask for nothing
    background: bool | None = None
    truncation: str | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    max_tool_calls: int | None = None
    prompt: dict[str, Any] | None = None
