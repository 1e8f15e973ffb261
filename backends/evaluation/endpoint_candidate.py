"""A model behind an OpenAI-compatible endpoint under test: ours, vLLM's, a provider's."""

import asyncio
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from backends.contract import Backend, Completion, GenerateRequest
from backends.errors import (
    BackendError,
    BackendOverloadedError,
    BackendResponseError,
    BackendUnavailableError,
    InvalidRequestError,
)
from backends.evaluation.candidate import (
    CONCURRENT,
    TOP,
    Answer,
    Certainty,
    MachineTime,
    ModelFacts,
    NoBits,
    Progress,
)
from backends.evaluation.items import Item, Text

HEADERS: Final = {"x-headgate-cache": "off"}
"""A gateway of ours must not answer out of its caches; other servers ignore it."""
TIMEOUT_S: Final = 300.0
RETRIES: Final = 5
"""Of a request that the endpoint is too busy for."""
LONGEST_WAIT_S: Final = 30.0


class EndpointCandidate:
    """Asks a `Backend`, `CONCURRENT` questions at a time, with one event loop of its own."""

    def __init__(self, name: str, backend: Backend, model: str, *, source: str) -> None:
        """`model`: what the endpoint calls the model."""
        self.name = name
        self.facts = ModelFacts(source=source)
        self._backend = backend
        self._model = model
        self._asks_logprobs = True
        self.machine_time: MachineTime = "engine"
        self._runner = asyncio.Runner()

    def answer(self, items: Sequence[Item], progress: Progress) -> list[Answer]:
        """Answer all. Where the server tells no machine time, the wall time is shared out.

        Raises:
            BackendError: the endpoint cannot be reached, refuses the key, or knows no such model.
        """
        began = time.perf_counter_ns()
        answers = self._runner.run(self._answer_all(items, progress))
        wall_ns = time.perf_counter_ns() - began
        tokens = sum(answer.completion_tokens for answer in answers)
        if not tokens or any(answer.machine_ns is not None for answer in answers):
            return answers
        self.machine_time = "wall"
        share = msgspec.structs.replace
        return [share(a, machine_ns=wall_ns * a.completion_tokens // tokens) for a in answers]

    async def _answer_all(self, items: Sequence[Item], progress: Progress) -> list[Answer]:
        answers: list[Answer] = []
        if items:  # one alone first: a wrong model or key shows before the crowd comes
            answers.append(await self._ask(items[0], strict=True))
            progress(1)
        slots = asyncio.Semaphore(CONCURRENT)

        async def one(item: Item) -> Answer:
            async with slots:
                answer = await self._ask(item)
                progress(1)
                return answer

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(item)) for item in items[1:]]
        except* BackendError as errors:
            raise errors.exceptions[0] from None
        return answers + [task.result() for task in tasks]

    async def _ask(self, item: Item, *, strict: bool = False) -> Answer:
        """One answer; a question that this model cannot take is an answer with an error."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": item.prompt}],
            "max_tokens": item.max_tokens,
            "temperature": 0.0,
        }
        if self._asks_logprobs:
            body |= {"logprobs": True, "top_logprobs": TOP}
        try:
            return _answer_of(await self._generate("chat/completions", body))
        except BackendUnavailableError:
            raise
        except (InvalidRequestError, BackendResponseError) as error:
            if strict and self._asks_logprobs:
                self._asks_logprobs = False
                return await self._ask(item, strict=True)
            if strict:
                raise
            return Answer(error=error.message)

    async def _generate(self, endpoint: Any, body: Mapping[str, Any]) -> Completion:
        request = GenerateRequest(
            request_id=f"eval-{uuid.uuid4().hex}",
            endpoint=endpoint,
            body=body,
            headers=HEADERS,
            timeout_s=TIMEOUT_S,
        )
        for _ in range(RETRIES):
            try:
                return await self._backend.generate(request)
            except BackendOverloadedError as error:
                await asyncio.sleep(min(error.retry_after_s, LONGEST_WAIT_S))
        return await self._backend.generate(request)

    def text_bits(self, texts: Sequence[Text]) -> Mapping[str, float]:
        """Bits per byte by part, where /v1/completions echoes a prompt's log-probabilities."""
        return self._runner.run(self._text_bits(texts))

    async def _text_bits(self, texts: Sequence[Text]) -> Mapping[str, float]:
        nats: dict[str, float] = defaultdict(float)
        size: dict[str, int] = defaultdict(int)
        slots = asyncio.Semaphore(CONCURRENT)

        async def one(text: Text) -> None:
            async with slots:
                logprob, counted = await self._log_likelihood(text.text)
                nats[text.part] -= logprob
                size[text.part] += counted

        await one(texts[0])
        try:
            async with asyncio.TaskGroup() as group:
                for text in texts[1:]:
                    group.create_task(one(text))
        except* (BackendError, NoBits) as errors:
            raise errors.exceptions[0] from None
        return {part: nats[part] / math.log(2) / size[part] for part in nats}

    async def _log_likelihood(self, text: str) -> tuple[float, int]:
        """Log-probability of a text after its first token, and the bytes after that token."""
        body = {
            "model": self._model,
            "prompt": text,
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 1,
        }
        try:
            choice = (await self._generate("completions", body)).body["choices"][0]
            echoed = str(choice["text"]).startswith(text)
            offsets = choice["logprobs"]["text_offset"]
            values = choice["logprobs"]["token_logprobs"]
            inside = [v for o, v in zip(offsets, values, strict=True) if 0 < o < len(text)]
            start = next(offset for offset in offsets if offset > 0)
        except (InvalidRequestError, BackendResponseError) as error:
            raise NoBits(f"it refuses `echo` with `logprobs` ({error.message})") from error
        except (KeyError, IndexError, TypeError, ValueError, StopIteration) as error:
            raise NoBits("its completions carry no log-probabilities of the prompt") from error
        if not echoed:
            raise NoBits("its completions do not echo the prompt")
        return sum(inside), len(text[start:].encode())

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._backend.aclose())
        self._runner.close()


def _answer_of(completion: Completion) -> Answer:
    """What a chat completion says, and what it used."""
    try:
        choice = completion.body["choices"][0]
        text = choice["message"].get("content") or ""
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise BackendResponseError(
            f"the endpoint's answer is no chat completion: {completion.body!r:.200}"
        ) from error
    usage = completion.usage
    entries = ((choice.get("logprobs") or {}).get("content")) or []
    return Answer(
        text=text,
        ended=choice.get("finish_reason") == "stop",
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        machine_ns=usage.headgate.machine_ns if usage and usage.headgate else None,
        mean_logprob=sum(e["logprob"] for e in entries) / len(entries) if entries else None,
        margin=_margin(entries),
        certainty=_certainty(entries),
    )


def _margin(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Least gap between the token written and the likeliest other one."""
    gaps = [
        entry["logprob"] - max(other["logprob"] for other in others)
        for entry in entries
        if (others := [o for o in entry.get("top_logprobs", ()) if o["token"] != entry["token"]])
    ]
    return min(gaps, default=None)


def _certainty(entries: Sequence[Mapping[str, Any]]) -> Certainty | None:
    margin = _margin(entries)
    if margin is None:
        return None
    entropy = 0.0
    for entry in entries:
        top = [other["logprob"] for other in entry["top_logprobs"]][:TOP]
        rest = max(0.0, 1 - sum(map(math.exp, top)))
        entropy -= sum(math.exp(value) * value for value in top)
        entropy -= rest * math.log(rest) if rest else 0.0
    return Certainty(
        logprob=sum(entry["logprob"] for entry in entries) / len(entries),
        margin=margin,
        entropy=entropy / len(entries),
    )
