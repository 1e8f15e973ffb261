"""Passing a backend's stream on: renamed, stripped, its last chunk held back for the settlement."""

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any

from backends.contract import Chunk, Usage
from backends.wire import usage_to_wire
from gateway.api import sse
from gateway.api.reply import Reply
from gateway.dispatch.hidden import hide_logprobs
from gateway.exchange import Exchange
from gateway.spending import Meter


async def relay(
    x: Exchange,
    reply: Reply,
    chunks: AsyncGenerator[Chunk, None],
    model: str,
    meter: Meter | None = None,
) -> None:
    """Send all but the last chunk of a stream; leaves `x.held`, `x.answer` and `x.usage`.

    Nothing is sent before the first chunk that carries a piece of the answer: until then another
    backend can still take over. The chunk with the last finish_reason stays back, because what
    the request cost stands on it. Where `meter` finds no money for more, the stream ends here with
    finish_reason "length".

    Raises:
        BackendError: the backend failed; `reply.started` says whether the client has seen some.
    """
    assembler = sse.Assembler()
    x.tokens_seen = 0
    waiting: list[bytes] = []
    held: dict[str, Any] | None = None
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            body = _renamed(x, chunk.body, model)
            carried = assembler.add(body)
            if not x.continuous_usage:
                body.pop("usage", None)
            if x.hides_logprobs and x.asked is not None:
                hide_logprobs(body, x.asked.raw)
            if chunk.usage is not None and not _goes_on(body):
                x.usage = chunk.usage
            if not body.get("choices"):
                continue
            if held is not None:
                waiting.append(sse.event(held))
                held = None
            if any(choice.get("finish_reason") for choice in body["choices"]):
                held = body
            else:
                waiting.append(sse.event(body))
            if not carried:
                continue
            x.tokens_seen = assembler.tokens_seen
            if x.first_token_at is None:
                x.first_token_at = time.perf_counter()
            if not reply.started:
                await reply.start_stream(x.headers(settled=False))
            if waiting:
                await reply.event(b"".join(waiting))
                waiting.clear()
            if (
                meter is not None
                and held is None
                and meter.is_due(chunk.usage)
                and not await meter.extend()
            ):
                x.stopped = "budget"
                held = _ended(body, assembler, chat=x.chat)
                break
    if x.usage is None:  # a server that does not say: what we saw is all we know
        prompt_tokens = x.facts.features.prompt_tokens if x.facts else 0
        x.usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=x.tokens_seen)
    x.held = held
    x.answer = {**assembler.body(chat=x.chat), "usage": usage_to_wire(x.usage)}


def _goes_on(body: dict[str, Any]) -> bool:
    """Whether a chunk's usage is of the answer so far."""
    choices = body.get("choices") or ()
    return len(choices) > 0 and not any(choice.get("finish_reason") for choice in choices)


def restart_event(x: Exchange, why: str) -> bytes:
    """Tells a client that asked for it to forget what it has seen: the answer begins again.

    A chunk without choices, which others skip.
    """
    body: dict[str, Any] = {
        "id": x.answer_id,
        "object": "chat.completion.chunk" if x.chat else "text_completion",
        "created": int(x.started_at),
        "model": x.backend or "",
        "choices": [],
        "headgate": {"restart": True, "reason": why},
    }
    return sse.event(body)


def _ended(body: dict[str, Any], assembler: sse.Assembler, *, chat: bool) -> dict[str, Any]:
    """The chunk that ends all choices for want of tokens."""
    rest: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
    choices = [
        {"index": index, **rest, "logprobs": None, "finish_reason": "length"}
        for index in assembler.unfinished
    ]
    end = {**body, "choices": choices}
    assembler.add(end)
    return end


def _renamed(x: Exchange, body: dict[str, Any], model: str) -> dict[str, Any]:
    body["id"] = x.answer_id
    body["model"] = model
    return body


def last_events(x: Exchange) -> bytes:
    """What ends a stream: finish_reason, usage if asked for, the `headgate` object, [DONE]."""
    events: list[bytes] = []
    answer = x.answer or {}
    held = x.held
    if x.hit is not None or x.unseen:
        *most, held = sse.replay(answer, chat=x.chat)
        events = [sse.event(chunk) for chunk in most]
    if held is None:
        kind = "chat.completion.chunk" if x.chat else "text_completion"
        held = {"id": x.answer_id, "object": kind, "model": answer.get("model"), "choices": []}
    if x.include_usage:
        events.append(sse.event(held))
        last = {name: value for name, value in held.items() if name != "choices"}
        last |= {"choices": [], "usage": answer.get("usage")}
    else:
        last = held
    events.append(sse.event({**last, "headgate": x.summary()}))
    return b"".join(events) + sse.DONE
