"""Token events as OpenAI's response objects: whole and streamed, chat and completions."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from backends.contract import FinishReason, TokenEvent, TokenLogprob, Usage
from backends.reasoning import ReasoningReader, ReasoningTurn
from backends.tokenizer import Tokenizer
from backends.tools.answer import AnswerCalls
from backends.wire import usage_to_wire


class ResponseWriter:
    """Builds the bodies of one request; `feed` what the engine emits, then take the `whole`.

    Choices are numbered through: prompt 0's n choices, then prompt 1's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        chat: bool,
        request_id: str,
        model: str,
        created_s: int,
        fingerprint: str,
        num_choices: int,
        with_logprobs: bool,
        calls: AnswerCalls | None = None,
        reasoning: ReasoningTurn | None = None,
        tells_thoughts: bool = True,
    ) -> None:
        """`calls` reads them out of answers that may hold some, `reasoning` thoughts, which are
        left out unless `tells_thoughts`."""
        self._tokenizer = tokenizer
        self._chat = chat
        self._with_logprobs = with_logprobs
        self._calls = calls
        self._tells_thoughts = tells_thoughts
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            "object": kind,
            "created": created_s,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._chunk_head = {**self._head, "object": f"{kind}.chunk" if chat else kind}
        self._texts: list[list[str]] = [[] for _ in range(num_choices)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(num_choices)]
        self._ends: list[TokenEvent | None] = [None] * num_choices
        self._offsets = [0] * num_choices
        self._thoughts: list[list[str]] = [[] for _ in range(num_choices)]
        self._readers: list[ReasoningReader] = []
        if reasoning is not None:
            self._readers = [ReasoningReader(reasoning) for _ in range(num_choices)]

    def opening(self) -> list[dict[str, Any]]:
        """The chunks that come before any token: a role for each choice of a chat."""
        if not self._chat:
            return []
        content = "" if self._calls is None else None  # Calls may come instead.
        delta = {"role": "assistant", "content": content, "refusal": None}
        return [
            self._chunk({"index": index, "delta": delta, "logprobs": None, "finish_reason": None})
            for index in range(len(self._texts))
        ]

    def feed(self, index: int, event: TokenEvent) -> None:
        """Take in an event of choice `index`."""
        thoughts, event = self._read(index, event)
        self._thoughts[index].append(thoughts)
        self._texts[index].append(event.text)
        if self._calls is not None:
            self._calls.count(index, event.text)
        if self._with_logprobs:
            self._logprobs[index] += _shown(event)
        if event.finish_reason is not None:
            self._ends[index] = event

    def is_full(self, index: int) -> bool:
        """Whether nothing that choice `index` may still say will be told."""
        return self._calls is not None and self._calls.is_full(index)

    def chunk(self, index: int, event: TokenEvent) -> dict[str, Any] | None:
        """An event of choice `index` as a chunk; None if there is nothing to tell yet."""
        thoughts, event = self._read(index, event)
        shown = _shown(event) if self._with_logprobs else ()
        reason = event.finish_reason
        delta: dict[str, Any] = {"content": event.text} if event.text else {}
        if self._calls is not None:
            delta, reason = self._calls.delta(index, event.text, reason)
        delta = {**_told(thoughts), **delta}
        if not delta and not shown and reason is None:
            return None
        choice: dict[str, Any] = {"index": index}
        if self._chat:
            choice["delta"] = delta
        else:
            choice["text"] = event.text
        choice["logprobs"] = self._logprobs_object(index, shown) if self._with_logprobs else None
        choice["finish_reason"] = reason
        if reason is not None:
            choice["stop_reason"] = event.stop_reason
        return self._chunk(choice)

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The last chunk."""
        return {**self._chunk_head, "choices": [], "usage": usage_to_wire(usage)}

    def counted(self, usage: Usage) -> Usage:
        """The same usage, with the tokens that were thought."""
        if not self._readers:
            return usage
        return replace(usage, reasoning_tokens=sum(reader.tokens for reader in self._readers))

    def whole(self, usage: Usage) -> dict[str, Any]:
        """The whole response."""
        choices = [self._choice(index) for index in range(len(self._texts))]
        return {**self._head, "choices": choices, "usage": usage_to_wire(usage)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._chunk_head, "choices": [choice]}

    def _read(self, index: int, event: TokenEvent) -> tuple[str, TokenEvent]:
        """New thoughts of choice `index` to tell, and the event without them."""
        if not self._readers:
            return "", event
        thoughts, event = self._readers[index].take(event)
        return thoughts if self._tells_thoughts else "", event

    def _choice(self, index: int) -> dict[str, Any]:
        text = "".join(self._texts[index])
        end = self._ends[index]
        reason: FinishReason = "abort"
        if end is not None and end.finish_reason is not None:
            reason = end.finish_reason
        choice: dict[str, Any] = {"index": index}
        if self._chat:
            said: dict[str, Any] = {"content": text}
            if self._calls is not None:
                said, reason = self._calls.message(text, reason)
            thoughts = _told("".join(self._thoughts[index]))
            choice["message"] = {"role": "assistant", **thoughts, **said, "refusal": None}
        else:
            choice["text"] = text
        choice["logprobs"] = None
        if self._with_logprobs:
            choice["logprobs"] = self._logprobs_object(index, self._logprobs[index])
        choice["finish_reason"] = reason
        choice["stop_reason"] = end.stop_reason if end is not None else None
        return choice

    def _logprobs_object(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self._chat:
            return {"content": [self._chat_logprob(entry) for entry in logprobs], "refusal": None}
        text = self._tokenizer.token_text
        offsets = []
        for entry in logprobs:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(text(entry.token_id))
        return {
            "tokens": [text(entry.token_id) for entry in logprobs],
            "token_logprobs": [entry.logprob for entry in logprobs],
            "top_logprobs": [{text(i): value for i, value in entry.top} for entry in logprobs],
            "text_offset": offsets,
        }

    def _chat_logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        top = [self._token(token_id, value) for token_id, value in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._tokenizer.token_bytes(token_id)
        # JSON has no -inf; OpenAI sends -9999 for "next to impossible" as well.
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob, -9999.0),
            "bytes": list(raw),
        }


def _told(thoughts: str) -> dict[str, str]:
    """By the name that most clients read, and by the one that vLLM has for it now."""
    return {"reasoning_content": thoughts, "reasoning": thoughts} if thoughts else {}


def _shown(event: TokenEvent) -> Sequence[TokenLogprob]:
    """Log-probabilities of the tokens that are text: not of the one that ended the answer."""
    if event.finish_reason == "stop" and not isinstance(event.stop_reason, str):
        return event.logprobs[:-1]
    return event.logprobs


def total_usage(usages: Sequence[Usage]) -> Usage:
    """The usage of several prompts together."""
    if len(usages) == 1:
        return usages[0]
    from backends.contract import EngineUsage

    engine = [usage.headgate or EngineUsage() for usage in usages]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in usages),
        completion_tokens=sum(u.completion_tokens for u in usages),
        cached_tokens=sum(u.cached_tokens for u in usages),
        accepted_prediction_tokens=sum(u.accepted_prediction_tokens for u in usages),
        rejected_prediction_tokens=sum(u.rejected_prediction_tokens for u in usages),
        headgate=EngineUsage(
            **{
                name: sum(getattr(e, name) for e in engine)
                for name in EngineUsage.__struct_fields__
            }
        ),
    )
