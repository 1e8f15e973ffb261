"""Our engine as a `Backend`: OpenAI bodies in, token ids through the engine, OpenAI bodies out."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from backends.chat_messages import plain_messages
from backends.contract import (
    BackendHealth,
    Chunk,
    Completion,
    GenerateRequest,
    SamplingParams,
    StructuredOutputsParams,
    Usage,
)
from backends.engine.async_engine import AsyncEngine, EngineRequest
from backends.engine.config import EngineConfig
from backends.engine_job import EngineJob
from backends.engine_metrics import EngineMetrics
from backends.errors import (
    BackendOverloadedError,
    ContextLengthError,
    InvalidRequestError,
)
from backends.openai_responses import ResponseWriter, total_usage
from backends.reasoning import ReasoningDialect, ReasoningParser
from backends.sampling.grammar import FormRefusedError, Grammar, GrammarCompiler
from backends.tokenizer import Tokenizer
from backends.tools.asked import read_functions, read_tools
from backends.tools.dialect import NO_TOOLS, Dialect, ToolTurn
from backends.tools.formats import ToolCallParser
from backends.tools.grammar import refusal_of_calls
from backends.wire import (
    CAPABILITY_FIELDS,
    ENGINE_CAPABILITIES,
    ChatCompletionRequest,
    CompletionRequest,
    WireError,
    sampling_params,
    split_inputs,
    usage_to_wire,
)

_OFF_LOOP_CHARACTERS = 16_384
"""Longer prompts are tokenised on another thread."""
_COMPLETION_MAX_TOKENS = 16
"""OpenAI's and vLLM's default for /v1/completions."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "suffix": ("",),
    "echo": (False,),
}
"""Values of capability fields that ask for nothing."""
_COMPILE_TIMEOUT_S = 10.0
"""For a form's turn to be compiled, and its compilation."""


class EngineBackend:
    """A `Backend` in the engine's own process.

    Attributes:
        name: the first of the model's served names.
    """

    def __init__(
        self,
        name: str,
        engine: AsyncEngine,
        tokenizer: Tokenizer,
        config: EngineConfig,
        metrics: EngineMetrics,
        *,
        model_revision: str,
        max_waiting: int = 1024,
        defaults: SamplingParams | None = None,
        adapters: Collection[str] = (),
        tool_call_parser: ToolCallParser = "auto",
        reasoning_parser: ReasoningParser = "auto",
    ) -> None:
        """Above `max_waiting` queued requests, further ones are refused as overload.

        `defaults` stand for sampling fields that a request leaves out. A request for a model that
        `adapters` names runs with that adapter. `tool_call_parser` says how the model writes calls
        where its chat template does not, `reasoning_parser` how it sets its thoughts apart.
        """
        self.name = name
        self._engine = engine
        self._tokenizer = tokenizer
        self._config = config
        self._metrics = metrics
        self._revision = model_revision
        self._max_waiting = max_waiting
        self._defaults = defaults or SamplingParams()
        self._adapters = frozenset(adapters)
        self._dialect = Dialect(tokenizer, tool_call_parser)
        self._reasoning = ReasoningDialect(tokenizer, reasoning_parser)
        self._grammars = GrammarCompiler(tokenizer)
        self._compiling = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    async def generate(self, request: GenerateRequest) -> Completion:
        """Answer whole."""
        job = await self._start(request)
        try:
            async for index, event in job.events():
                job.writer.feed(index, event)
        finally:
            job.stream.close()
        usage = job.total()
        return Completion(body=job.writer.whole(usage), usage=usage)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Answer chunk by chunk; the last one carries the usage."""
        job = await self._start(request)
        try:
            for body in job.writer.opening():
                yield Chunk(body=body)
            async for index, event in job.events():
                chunk = job.writer.chunk(index, event)
                if chunk is None:
                    continue
                if event.accrued is None:
                    yield Chunk(body=chunk)
                else:
                    so_far = job.so_far(event)
                    body = {**chunk, "usage": usage_to_wire(so_far)}
                    yield Chunk(body=body, usage=so_far)
            usage = job.total()
            yield Chunk(body=job.writer.usage_chunk(usage), usage=usage)
        finally:
            job.stream.close()

    async def probe(self) -> BackendHealth:
        """Ready while the engine lives."""
        stats = self._engine.stats()
        return BackendHealth(
            ready=self._engine.failure is None,
            running=stats.running,
            waiting=stats.waiting,
            capacity=self._config.max_num_seqs,
            model_revision=self._revision,
            context_tokens=self._config.longest_sequence,
            detail=self._engine.failure or "",
            accepts=tuple(
                sorted(ENGINE_CAPABILITIES - self._dialect.refuses - self._reasoning.refuses)
            ),
        )

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Exact prompt tokens of a chat or completion body."""
        if "messages" in body:
            tools, told = body.get("tools"), self._told(body)
            if not tools and body.get("functions"):
                tools = [{"type": "function", "function": one} for one in body["functions"]]
            ids = await self.encode_chat(body["messages"], tools, template_kwargs=told)
            return len(ids)
        prompts = await self._encode_prompts(body.get("prompt") or "")
        return sum(len(prompt) for prompt in prompts)

    async def usage_of(self, request_id: str) -> Usage | None:
        """The final usage of a request that ended, or was cut off, at most 60 s ago."""
        usage = await self._engine.usage_of(request_id)
        if usage is not None:
            return usage
        parts: list[Usage] = []
        while (part := await self._engine.usage_of(_part_id(request_id, len(parts)))) is not None:
            parts.append(part)
        return total_usage(parts) if parts else None

    async def aclose(self) -> None:
        """Stop the engine."""
        self._compiling.shutdown(wait=False, cancel_futures=True)
        await self._engine.aclose()

    async def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[int]:
        """Token ids of a chat, off the event loop where it is long.

        Raises:
            InvalidRequestError: no messages, or some that this model cannot read; `template_kwargs`
                that would take others' places.
            ContextLengthError: too long without counting.
        """
        if not messages:
            raise InvalidRequestError("'messages' is empty; send at least one.", param="messages")
        if template_kwargs:
            options |= _template_kwargs(template_kwargs)
        plain, options["tools"] = self._dialect.told(plain_messages(messages), tools)
        self._refuse_too_long("".join(m["content"] for m in plain), "messages")
        length = sum(len(message["content"]) for message in plain)
        if tools:
            length += len(msgspec.json.encode(tools))
        if length <= _OFF_LOOP_CHARACTERS:
            return self._tokenizer.encode_chat(plain, **options)
        return await asyncio.to_thread(self._tokenizer.encode_chat, plain, **options)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, off the event loop where it is long."""
        self._refuse_too_long(text, "prompt")
        if len(text) <= _OFF_LOOP_CHARACTERS:
            return self._tokenizer.encode(text, add_special_tokens)
        return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens)

    def _refuse_too_long(self, text: str, param: str) -> None:
        """Refuse what cannot fit however well it is tokenised, before spending time on it."""
        least, most = self._tokenizer.token_floor(text), self._config.longest_sequence
        if least > most:
            raise ContextLengthError(
                f"This model's maximum context length is {most} tokens; the prompt has at least "
                f"{least}. Shorten it.",
                param=param,
            )

    async def _encode_prompts(self, value: Any) -> list[list[int]]:
        try:
            prompts = split_inputs(value, "prompt")
        except WireError as error:
            raise InvalidRequestError(error.message, param=error.param) from None
        return [p if isinstance(p, list) else await self.encode(p) for p in prompts]

    def _engine_ids(self, request_id: str, count: int) -> list[str]:
        """The engine's ids of a request's prompts. A client may send the same id twice at once:
        its second request gets another."""
        ids = [request_id]
        if count > 1:
            ids = [_part_id(request_id, place) for place in range(count)]
        if any(self._engine.is_open(own) for own in ids):
            return self._engine_ids(f"{request_id}~{uuid.uuid4().hex[:8]}", count)
        return ids

    async def _grammar(self, form: StructuredOutputsParams, wire: Any, turn: ToolTurn) -> Grammar:
        """Compile the form that an answer must have, beside everything else, unless it is kept."""
        grammar = self._grammars.kept(form)
        if grammar is not None:
            return grammar
        loop = asyncio.get_running_loop()
        compiling = loop.run_in_executor(self._compiling, self._compile, form, turn)
        try:
            return await asyncio.wait_for(compiling, _COMPILE_TIMEOUT_S)
        except TimeoutError:
            raise BackendOverloadedError(
                f"The answer's form was not compiled within {_COMPILE_TIMEOUT_S:g} s; try again."
            ) from None
        except InvalidRequestError as error:
            own = wire.structured_outputs is not None
            asked_by = "structured_outputs" if own else "response_format"
            error.param = "tools" if turn.constrains else asked_by
            raise

    def _compile(self, form: StructuredOutputsParams, turn: ToolTurn) -> Grammar:
        """On the thread that compiles."""
        try:
            return self._grammars.compile(form)
        except FormRefusedError as error:
            if not turn.constrains:
                raise
            raise refusal_of_calls(turn.functions, error, self._grammars.compile) from None

    def _told(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the chat template is told beside the messages."""
        effort = self._reasoning.template_kwargs(body.get("reasoning_effort"))
        return effort | (body.get("chat_template_kwargs") or {})

    def _turn(self, wire: ChatCompletionRequest, params: SamplingParams) -> ToolTurn:
        """What the tools of a chat come to."""
        form = params.structured_outputs
        if wire.functions or wire.function_call not in (None, "none"):
            _refuse_both(wire)
            asked = read_functions(wire.functions, wire.function_call)
        else:
            asked = read_tools(wire.tools, wire.tool_choice, wire.parallel_tool_calls)
        return ToolTurn(form=form) if asked is None else self._dialect.turn(asked, form)

    def _read(self, request: GenerateRequest) -> tuple[Any, SamplingParams]:
        """Check a body."""
        chat = request.endpoint == "chat/completions"
        kind: Any = ChatCompletionRequest if chat else CompletionRequest
        try:
            wire = msgspec.convert(request.body, kind)
            params = sampling_params(wire, self._defaults)
        except msgspec.ValidationError as error:
            raise InvalidRequestError(str(error)) from None
        except WireError as error:
            raise InvalidRequestError(error.message, param=error.param) from None
        _refuse_capabilities(request.body, params.n)
        return wire, params

    async def _start(self, request: GenerateRequest) -> EngineJob:
        """Check, tokenise and queue a request."""
        if self._engine.stats().waiting >= self._max_waiting:
            raise BackendOverloadedError(
                f"The queue is full ({self._max_waiting} requests); try again later."
            )
        arrived_s = time.monotonic()
        chat = request.endpoint == "chat/completions"
        wire, params = self._read(request)
        turn = NO_TOOLS
        if chat and (wire.tools or wire.tool_choice or wire.functions or wire.function_call):
            turn = self._turn(wire, params)
            params = msgspec.structs.replace(params, structured_outputs=turn.form)
        form = params.structured_outputs
        grammar = None if form is None else await self._grammar(form, wire, turn)
        prediction, thinking = None, None
        if chat:
            messages, told = request.body["messages"], self._told(request.body)
            prompts = [await self.encode_chat(messages, turn.tools, template_kwargs=told)]
            thinking = self._reasoning.turn(prompts[0])
            prediction = wire.prediction.text() if wire.prediction else None
        else:
            prompts = await self._encode_prompts(wire.prompt)
            if params.max_tokens is None:
                params = msgspec.structs.replace(params, max_tokens=_COMPLETION_MAX_TOKENS)
        shown_ids = turn.shown_ids
        if thinking is not None:
            shown_ids |= thinking.shown_ids
        ids = self._engine_ids(request.request_id, len(prompts))
        options = wire.stream_options
        stream = await self._engine.submit(
            [
                EngineRequest(
                    request_id=request_id,
                    prompt_token_ids=prompt,
                    params=params,
                    priority=wire.priority or 0,
                    prediction_text=prediction,
                    tells_usage=bool(options and options.continuous_usage_stats),
                    adapter=wire.model if wire.model in self._adapters else None,
                    grammar=grammar,
                    thoughts=thinking.thoughts if thinking else None,
                    shown_ids=shown_ids,
                )
                for request_id, prompt in zip(ids, prompts, strict=True)
            ]
        )
        choices = len(ids) * params.n
        writer = ResponseWriter(
            self._tokenizer,
            chat=chat,
            request_id=request.request_id,
            model=wire.model,
            created_s=int(time.time()),
            fingerprint=f"fp_{self._revision}",
            num_choices=choices,
            with_logprobs=params.logprobs is not None,
            calls=turn.reads(choices),
            reasoning=thinking,
            tells_thoughts=request.body.get("include_reasoning") is not False,
        )
        return EngineJob(stream, writer, ids, params, self._metrics, arrived_s)


def _part_id(request_id: str, place: int) -> str:
    """The engine's id of one of several prompts."""
    return f"{request_id}/{place}"


def _refuse_both(wire: ChatCompletionRequest) -> None:
    if wire.tools or wire.tool_choice:
        raise InvalidRequestError(
            "Send 'tools' and 'tool_choice', or the older 'functions' and 'function_call', not "
            "both.",
            param="functions" if wire.functions else "function_call",
        )


def _template_kwargs(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a client tells the chat template, but for what the rest of its body says."""
    for name in ("messages", "tools", "add_generation_prompt"):
        if name in given:
            raise InvalidRequestError(
                f"chat_template_kwargs has {name!r}, which has a place of its own; leave it out.",
                param=f"chat_template_kwargs.{name}",
            )
    return dict(given)


def _refuse_capabilities(body: Mapping[str, Any], n: int) -> None:
    for name in CAPABILITY_FIELDS:
        value = body.get(name)
        if value is None or name in ENGINE_CAPABILITIES or value in _NEUTRAL.get(name, ()):
            continue
        if name == "best_of" and value == n:
            continue
        raise InvalidRequestError(
            f"{name!r} is not supported by this model; leave it out.", param=name
        )
