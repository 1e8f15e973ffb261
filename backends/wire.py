"""OpenAI's request bodies as structs, for the gateway and for our own server alike.

`decode()` turns bytes into a struct or raises `WireError` naming the offending field, so both
servers refuse the same input with the same words. Responses stay plain dicts.
"""

import re
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from backends.contract import EngineUsage, SamplingParams, StructuredOutputsParams, Usage


class WireError(ValueError):
    """A body that cannot be accepted. `param` is the OpenAI field path, None for the whole body."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class Wire(Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of request bodies: mutable for speed of construction, treated as read only."""


class Message(Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """One chat message. Content parts of type `text` are honoured; others need a capability.

    The last fields are what SDKs send back with an earlier answer, mostly null.
    """

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    function_call: dict[str, Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    annotations: list[Any] | None = None
    audio: dict[str, Any] | None = None

    def text(self) -> str:
        """The text of the message, its text parts joined."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content)


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: usage so far on the way, too. Ours tells it about every 16 tokens."""


class Prediction(Struct, kw_only=True, forbid_unknown_fields=True):
    """OpenAI's predicted output: verified as a draft, never changes the answer."""

    type: Literal["content"] = "content"
    content: str | list[dict[str, Any]] = ""

    def text(self) -> str:
        """The predicted text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(str(part.get("text", "")) for part in self.content)


class Sampling(Wire, kw_only=True):
    """Fields that every request for an answer has."""

    model: str
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    # vLLM's extra sampling fields
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    # accepted, without effect
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    service_tier: str | None = None


class _Sampled(Sampling, kw_only=True):
    """Fields that chat and completions share."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    # vLLM's: the form of the answer; a capability, as response_format is
    structured_outputs: dict[str, Any] | None = None


class ChatCompletionRequest(_Sampled, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prediction: Prediction | None = None
    # capabilities: narrow the candidates to backends that accept them
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionRequest(_Sampled, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class EmbeddingRequest(Wire, kw_only=True):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


CAPABILITY_FIELDS = (
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "structured_outputs",
    "reasoning_effort",
    "include_reasoning",
    "modalities",
    "audio",
    "verbosity",
    "web_search_options",
    "functions",
    "function_call",
    "suffix",
    "echo",
    "best_of",
    "chat_template_kwargs",
)
"""Fields of kind (c): only backends whose `accepts` names them may answer."""

ENGINE_CAPABILITIES = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "functions",
        "function_call",
        "response_format",
        "structured_outputs",
        "reasoning_effort",
        "include_reasoning",
        "chat_template_kwargs",
    }
)
"""Those of them that our own engine honours; `tools` and `functions` only of models that know how
to call, `reasoning_effort` only of those whose chat template can be told."""

WITHOUT_EFFECT_FIELDS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "store",
    "service_tier",
)
"""Fields of kind (b)."""

_T = TypeVar("_T", bound=Wire)
_K = TypeVar("_K", bound=Struct)


class _Decoders(dict[type, "msgspec.json.Decoder[Any]"]):
    """One per kind of body, made when it is first asked for."""

    def __missing__(self, kind: type) -> "msgspec.json.Decoder[Any]":
        self[kind] = msgspec.json.Decoder(kind)
        return self[kind]


_decoders = _Decoders()
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]+)`")
_MISSING = re.compile(r"missing required field `([^`]+)`")


def decode(kind: type[_T], body: bytes) -> _T:
    """Decode a request body, strictly.

    Raises:
        WireError: malformed JSON, broken UTF-8, wrong type, unknown or missing field; `param`
            names the field.
    """
    try:
        return _decoders[kind].decode(body)  # type: ignore[no-any-return]
    except msgspec.ValidationError as error:
        raise _wire_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"The request body is not valid JSON: {error}") from None


def _wire_error(text: str, within: str = "") -> WireError:
    found = _PATH.search(text)
    path = ".".join(part for part in (within, found.group(1) if found else "") if part)
    reason = _PATH.sub("", text)
    for pattern, words in ((_UNKNOWN, "Unknown field"), (_MISSING, "Missing required field")):
        named = pattern.search(reason)
        if named:
            param = f"{path}.{named.group(1)}" if path else named.group(1)
            return WireError(f"{words}: {param!r}.", param)
    return WireError(f"Invalid value for {path or 'the body'}: {reason}.", path or None)


def split_inputs(value: str | list[Any], param: str) -> list[str | list[int]]:
    """A `prompt` or `input` field as one entry per prompt: text, or token ids.

    Raises:
        WireError: an empty list, or strings, ids and lists mixed.
    """
    if isinstance(value, str):
        return [value]
    kinds = {type(item) for item in value}
    if kinds == {int}:
        return [value]
    if kinds in ({str}, {list}):
        return list(value)
    problem = "is empty" if not value else "mixes strings, token ids and lists"
    raise WireError(f"{param!r} {problem}; send one string, strings, or token ids.", param)


_OPENAI = SamplingParams()


def sampling_params(
    request: ChatCompletionRequest | CompletionRequest, defaults: SamplingParams = _OPENAI
) -> SamplingParams:
    """The request's sampling fields, ranges checked; `defaults` for those it leaves out.

    Raises:
        WireError: a value out of range; `param` names the field.
    """
    logprobs: int | None
    max_tokens = request.max_tokens
    if isinstance(request, ChatCompletionRequest):
        if request.max_completion_tokens is not None:
            max_tokens = request.max_completion_tokens
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        if request.top_logprobs is not None and not request.logprobs:
            raise WireError("top_logprobs needs logprobs = true.", "top_logprobs")
    else:
        logprobs = request.logprobs
    stop = request.stop
    params = SamplingParams(
        n=_or(request.n, 1),
        max_tokens=_or(max_tokens, defaults.max_tokens),
        min_tokens=_or(request.min_tokens, 0),
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        top_k=_or(request.top_k, defaults.top_k),
        min_p=_or(request.min_p, defaults.min_p),
        seed=request.seed,
        stop=() if stop is None else (stop,) if isinstance(stop, str) else tuple(stop),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        presence_penalty=_or(request.presence_penalty, 0.0),
        frequency_penalty=_or(request.frequency_penalty, 0.0),
        repetition_penalty=_or(request.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_logit_bias(request.logit_bias),
        logprobs=logprobs,
        ignore_eos=bool(request.ignore_eos),
        structured_outputs=_form(request),
    )
    try:
        params.validate()
    except ValueError as error:
        param, _, problem = str(error).partition(" ")
        name = _wire_name(request, param)
        raise WireError(f"Invalid value: {name} {problem}.", name) from None
    return params


class _JsonSchema(Struct, forbid_unknown_fields=True):
    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class _ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None
    schema: dict[str, Any] | None = None
    """llama.cpp's way: beside json_object."""


def _form(request: ChatCompletionRequest | CompletionRequest) -> StructuredOutputsParams | None:
    """What form the answer must have: vLLM's field, or OpenAI's."""
    own = request.structured_outputs
    given = request.response_format if isinstance(request, ChatCompletionRequest) else None
    if own is None and given is None:
        return None
    wanted = _ResponseFormat("text")
    if given is not None:
        wanted = _convert(given, _ResponseFormat, "response_format")
    if own is not None:
        if wanted.type != "text":
            raise WireError(
                "Send response_format or structured_outputs, not both.", "response_format"
            )
        return _convert(own, StructuredOutputsParams, "structured_outputs")
    if wanted.type == "text":
        return None
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise WireError("json_schema is missing.", "response_format.json_schema")
        strict = wanted.json_schema.strict is not False
        return StructuredOutputsParams(json=wanted.json_schema.schema, strict=strict)
    if wanted.schema is not None:
        return StructuredOutputsParams(json=wanted.schema)
    return StructuredOutputsParams(json_object=True)


def _convert(value: Any, kind: type[_K], param: str) -> _K:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _wire_error(str(error), param) from None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _logit_bias(bias: dict[str, float] | None) -> dict[int, float]:
    try:
        return {int(token): value for token, value in (bias or {}).items()}
    except ValueError:
        raise WireError("logit_bias keys must be token ids (integers).", "logit_bias") from None


def _wire_name(request: ChatCompletionRequest | CompletionRequest, param: str) -> str:
    if not isinstance(request, ChatCompletionRequest):
        return param
    if param == "max_tokens" and request.max_completion_tokens is not None:
        return "max_completion_tokens"
    return "top_logprobs" if param == "logprobs" else param


class _PromptDetails(Struct):
    cached_tokens: int | None = 0


class _CompletionDetails(Struct):
    accepted_prediction_tokens: int | None = 0
    rejected_prediction_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _WireUsage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    headgate: EngineUsage | UnsetType = field(default=UNSET)


def usage_from_wire(usage: dict[str, Any] | None) -> Usage | None:
    """OpenAI's `usage` object (ours or a foreign server's) as a `Usage`; None if there is none."""
    if not usage:
        return None
    wire = msgspec.convert(usage, _WireUsage)
    prompt = wire.prompt_tokens_details or _PromptDetails()
    answer = wire.completion_tokens_details or _CompletionDetails()
    return Usage(
        prompt_tokens=wire.prompt_tokens,
        completion_tokens=wire.completion_tokens,
        cached_tokens=prompt.cached_tokens or 0,
        accepted_prediction_tokens=answer.accepted_prediction_tokens or 0,
        rejected_prediction_tokens=answer.rejected_prediction_tokens or 0,
        reasoning_tokens=answer.reasoning_tokens or 0,
        headgate=wire.headgate if isinstance(wire.headgate, EngineUsage) else None,
    )


def usage_to_wire(usage: Usage) -> dict[str, Any]:
    """A `Usage` as OpenAI's `usage` object."""
    wire: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {
            "accepted_prediction_tokens": usage.accepted_prediction_tokens,
            "rejected_prediction_tokens": usage.rejected_prediction_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
    }
    if usage.headgate is not None:
        wire["headgate"] = msgspec.structs.asdict(usage.headgate)
    return wire


def error_body(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
