"""A deterministic backend without a model: demos and tests talk to it instead of a mock.

It answers a chat with the last user message in its own words, one word per token, and fails on
demand. In process it is a `Backend`; `python -m backends.echo --port P` serves it over HTTP.
"""

import asyncio
import base64
import hashlib
import math
import re
import struct
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from typing import Any, Literal

from backends.contract import (
    BackendHealth,
    Chunk,
    Completion,
    EngineUsage,
    GenerateRequest,
    Usage,
)
from backends.errors import (
    BackendRateLimitedError,
    BackendResponseError,
    BackendStreamError,
    BackendTimeoutError,
    BackendUnavailableError,
    InvalidRequestError,
)
from backends.wire import usage_to_wire

Fault = Literal["refuse", "overload", "error", "hang", "cut"]
"""refuse the connection · 429 · a 500 · never answer · break off half-way"""

_WORDS = re.compile(r"\S+\s*")
_KEPT_USAGES = 1000
_TELL_EVERY = 16
"""Words between two tellings of usage so far."""


class EchoBackend:
    """Answers every request with words from the request.

    Attributes:
        name: the backend's name.
        requests: the last 100 requests, oldest first.
        fault: how every request fails while `faults` is empty; None: it does not. Settable.
    """

    def __init__(
        self,
        name: str = "echo",
        *,
        reply: str | None = None,
        tokens: int | None = None,
        delay_s: float = 0.0,
        token_delay_s: float = 0.0,
        ns_per_token: int | None = None,
        faults: Iterable[Fault | None] = (),
        fault: Fault | None = None,
        retry_after_s: float = 1.0,
        capacity: int = 64,
        context_tokens: int | None = None,
        model_revision: str = "echo-1",
        dimensions: int = 384,
        logprob: float = 0.0,
    ) -> None:
        """`reply` replaces the echo; `tokens` repeats or cuts it to that many words.

        `delay_s` is before the first word, `token_delay_s` before each further one.
        `ns_per_token` reports machine time as our engine does. `faults` are spent one per
        request, in order; None among them lets one pass. `logprob` is every word's; the rest of
        the probability is another word's.
        """
        self.name = name
        self.fault = fault
        self.requests: deque[GenerateRequest] = deque(maxlen=100)
        self._reply = reply
        self._tokens = tokens
        self._delay_s = delay_s
        self._token_delay_s = token_delay_s
        self._ns_per_token = ns_per_token
        self._faults = deque(faults)
        self._retry_after_s = retry_after_s
        self._capacity = capacity
        self._context_tokens = context_tokens
        self._model_revision = model_revision
        self._dimensions = dimensions
        self._logprob = logprob
        self._running = 0
        self._usages: dict[str, Usage] = {}

    async def generate(self, request: GenerateRequest) -> Completion:
        """Answer whole."""
        fault = await self._begin(request)
        self._running += 1
        try:
            await asyncio.sleep(self._delay_s)
            if fault == "cut":
                raise BackendUnavailableError(
                    f"backend {self.name!r} closed the connection without a whole answer",
                    backend=self.name,
                )
            if request.endpoint == "embeddings":
                return self._embeddings(request.body)
            words, reason = self._answer(request)
            await asyncio.sleep(self._token_delay_s * max(0, len(words) - 1))
            return self._completion(request, words, reason)
        finally:
            self._running -= 1

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Answer word by word; the last chunk carries the usage."""
        fault = await self._begin(request)
        words, reason = self._answer(request)
        count = _choices(request.body)
        served = 0
        tells = (request.body.get("stream_options") or {}).get("continuous_usage_stats")
        self._running += 1
        try:
            await asyncio.sleep(self._delay_s)
            if request.endpoint == "chat/completions":
                for index in range(count):
                    yield self._chunk(request, index, role="assistant")
            for place, word in enumerate(words):
                if fault == "cut" and place >= len(words) // 2:
                    raise BackendStreamError(
                        f"backend {self.name!r} broke off in the middle of its answer",
                        backend=self.name,
                    )
                if place and self._token_delay_s:
                    await asyncio.sleep(self._token_delay_s)
                for index in range(count):
                    served += 1
                    chunk = self._chunk(request, index, word=word)
                    if tells and place % _TELL_EVERY == _TELL_EVERY - 1:
                        chunk.usage = self._usage(request, served)
                        chunk.body["usage"] = usage_to_wire(chunk.usage)
                    yield chunk
            for index in range(count):
                yield self._chunk(request, index, reason=reason)
            usage = self._usage(request, served)
            yield Chunk(
                body={**self._head(request, True), "choices": [], "usage": usage_to_wire(usage)},
                usage=usage,
            )
        finally:
            self._running -= 1
            self._keep_usage(request.request_id, self._usage(request, served))

    async def probe(self) -> BackendHealth:
        """Ready unless it is to refuse connections."""
        return BackendHealth(
            ready=self.fault != "refuse",
            running=self._running,
            capacity=self._capacity,
            model_revision=self._model_revision,
            context_tokens=self._context_tokens,
            detail="refuses connections" if self.fault == "refuse" else "",
        )

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Words of the prompt."""
        return _prompt_tokens(body)

    async def usage_of(self, request_id: str) -> Usage | None:
        """The usage of one of the last streams, whole or cut off."""
        return self._usages.get(request_id)

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _begin(self, request: GenerateRequest) -> Fault | None:
        """Note the request; fail if it is to fail before the answer."""
        self.requests.append(request)
        fault = self._faults.popleft() if self._faults else self.fault
        if fault == "refuse":
            raise BackendUnavailableError(
                f"backend {self.name!r} refuses connections; is it running?", backend=self.name
            )
        if fault == "overload":
            raise BackendRateLimitedError(
                f"backend {self.name!r} is overloaded (429)",
                backend=self.name,
                retry_after_s=self._retry_after_s,
            )
        if fault == "error":
            raise BackendResponseError(
                f"backend {self.name!r} answered 500: scripted fault", backend=self.name, status=500
            )
        if fault == "hang":
            # The caller times out or cancels.
            await asyncio.sleep(request.timeout_s)
            raise BackendTimeoutError(
                f"backend {self.name!r} did not answer within {request.timeout_s:g} s",
                backend=self.name,
            )
        return fault

    def _answer(self, request: GenerateRequest) -> tuple[list[str], str]:
        """The answer's words and why it ends."""
        body = request.body
        text = self._reply if self._reply is not None else f"You said: {_last_text(body)}"
        words = _WORDS.findall(text) or ["nothing"]
        if self._tokens is not None:
            repeated = [f"{word.rstrip()} " for word in words] * (self._tokens // len(words) + 1)
            words = repeated[: self._tokens]
        stops = body.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            cut = "".join(words).find(stop)
            if cut >= 0:
                words = _WORDS.findall("".join(words)[:cut])
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and len(words) > limit:
            return words[:limit], "length"
        return words, "stop"

    def _completion(self, request: GenerateRequest, words: list[str], reason: str) -> Completion:
        chat = request.endpoint == "chat/completions"
        text = "".join(words)
        choices = []
        for index in range(_choices(request.body)):
            choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
            if chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
                if request.body.get("logprobs"):
                    choice["logprobs"] = {"content": [self._told(request, word) for word in words]}
            else:
                choice["text"] = text
            choices.append(choice)
        usage = self._usage(request, len(words) * len(choices))
        self._keep_usage(request.request_id, usage)
        head = self._head(request, False)
        return Completion(
            body={**head, "choices": choices, "usage": usage_to_wire(usage)}, usage=usage
        )

    def _chunk(
        self,
        request: GenerateRequest,
        index: int,
        *,
        role: str | None = None,
        word: str | None = None,
        reason: str | None = None,
    ) -> Chunk:
        choice: dict[str, Any] = {"index": index, "finish_reason": reason, "logprobs": None}
        if request.endpoint == "chat/completions":
            choice["delta"] = {"role": role, "content": ""} if role else {}
            if word is not None:
                choice["delta"] = {"content": word}
                if request.body.get("logprobs"):
                    choice["logprobs"] = {"content": [self._told(request, word)]}
        else:
            choice["text"] = word or ""
        return Chunk(body={**self._head(request, True), "choices": [choice]})

    def _head(self, request: GenerateRequest, streamed: bool) -> dict[str, Any]:
        chat = request.endpoint == "chat/completions"
        kind = "chat.completion" if chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request.request_id}",
            "object": f"{kind}.chunk" if chat and streamed else kind,
            "created": int(time.time()),
            "model": request.body.get("model", self.name),
        }

    def _told(self, request: GenerateRequest, word: str) -> dict[str, Any]:
        """A word's log-probabilities: its own, and one other word's."""
        own = {"token": word, "logprob": self._logprob, "bytes": list(word.encode())}
        rest = math.log(max(1 - math.exp(self._logprob), 1e-9))
        other = {"token": f"~{word}", "logprob": rest, "bytes": []}
        top = sorted((own, other), key=lambda entry: -float(str(entry["logprob"])))
        return {**own, "top_logprobs": top[: request.body.get("top_logprobs") or 0]}

    def _usage(self, request: GenerateRequest, answered: int) -> Usage:
        prompt = _prompt_tokens(request.body)
        engine = None
        if self._ns_per_token is not None:
            engine = EngineUsage(
                prefill_ns=prompt * self._ns_per_token, decode_ns=answered * self._ns_per_token
            )
        expected = (request.body.get("prediction") or {}).get("content")
        predicted = _WORDS.findall(_content_text(expected))
        pairs = zip(predicted, self._answer(request)[0], strict=False)
        right = sum(mine == theirs for mine, theirs in pairs)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=answered,
            accepted_prediction_tokens=right,
            rejected_prediction_tokens=len(predicted) - right,
            headgate=engine,
        )

    def _keep_usage(self, request_id: str, usage: Usage) -> None:
        self._usages[request_id] = usage
        if len(self._usages) > _KEPT_USAGES:
            del self._usages[next(iter(self._usages))]

    def _embeddings(self, body: Mapping[str, Any]) -> Completion:
        inputs = body.get("input")
        texts: list[Any] = inputs if isinstance(inputs, list) else [inputs]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidRequestError("echo embeds strings only", backend=self.name, param="input")
        data = []
        for index, text in enumerate(texts):
            vector: Any = hashed_vector(text, self._dimensions)
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        count = sum(len(_WORDS.findall(text)) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return Completion(
            body={
                "object": "list",
                "data": data,
                "model": body.get("model", self.name),
                "usage": usage,
            },
            usage=Usage(prompt_tokens=count),
        )


def hashed_vector(text: str, dimensions: int) -> list[float]:
    """A unit vector; texts that share words have similar ones."""
    vector = [0.0] * dimensions
    for word in re.findall(r"\w+", text.lower()) or [text]:
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=16).digest()
        for place in range(0, 16, 4):
            spot = int.from_bytes(digest[place : place + 3], "little") % dimensions
            vector[spot] += 1.0 if digest[place + 3] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def _choices(body: Mapping[str, Any]) -> int:
    return int(body.get("n") or 1)


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _last_text(body: Mapping[str, Any]) -> str:
    """The last user message, or the prompt."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return _content_text(message.get("content"))
    prompt = body.get("prompt") or ""
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _prompt_tokens(body: Mapping[str, Any]) -> int:
    if body.get("messages") is not None:
        texts = [_content_text(message.get("content")) for message in body["messages"]]
    else:
        texts = [_last_text(body)]
    return sum(len(_WORDS.findall(text)) for text in texts) + len(texts)


if __name__ == "__main__":
    from backends.echo_server import main

    main()
