"""The response object, whole or told event by event out of a chat's stream."""

from typing import Any

import msgspec

from gateway.responses.output import Event, Output
from gateway.responses.wire import ResponsesRequest

_DONE = b"[DONE]"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""By finish_reason, why an answer is not whole."""
_encode = msgspec.json.Encoder().encode


class Answer:
    """One response: fed with a chat's answer or its chunks."""

    def __init__(self, asked: ResponsesRequest, request_id: str) -> None:
        self._asked = asked
        self._request_id = request_id
        self._output = Output(request_id)
        self._head: dict[str, Any] = {}
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._ours: dict[str, Any] | None = None
        self._number = -1

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """The response object of a whole chat answer."""
        for choice in body["choices"][:1]:
            message = choice["message"]
            self._output.add(message, _logprobs(choice))
            self._finish_reason = choice.get("finish_reason")
        self._head, self._usage = body, body.get("usage")
        self._finish()
        return self._response(self._status())

    def events(self, data: bytes) -> bytes:
        """What some events of a chat's stream come to; comments pass."""
        told: list[bytes] = []
        for event in data.split(b"\n\n"):
            if not event.startswith(b"data: "):
                told += [event + b"\n\n"] if event else []
                continue
            content = event.removeprefix(b"data: ")
            if content != _DONE:
                told += [self._event(e) for e in self._chunk(msgspec.json.decode(content))]
        return b"".join(told)

    def _chunk(self, chunk: dict[str, Any]) -> list[Event]:
        if "error" in chunk:
            return self._failed(chunk["error"])
        events: list[Event] = []
        if not self._head:
            self._head = chunk
            begun = self._response("in_progress")
            events = [
                ("response.created", {"response": begun}),
                ("response.in_progress", {"response": begun}),
            ]
        for choice in chunk["choices"][:1]:
            events += self._output.add(choice.get("delta") or {}, _logprobs(choice))
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        if chunk.get("usage"):
            self._usage = chunk["usage"]
        if "headgate" in chunk:  # the stream's last
            self._ours = chunk["headgate"]
            events += self._finish()
            status = self._status()
            events.append((f"response.{status}", {"response": self._response(status)}))
        return events

    def _failed(self, error: dict[str, Any]) -> list[Event]:
        self._output.cut_off()
        told = {"code": error["code"], "message": error["message"]}
        failed = {**self._response("failed"), "error": told}
        return [
            ("error", {**told, "param": error["param"]}),
            ("response.failed", {"response": failed}),
        ]

    def _finish(self) -> list[Event]:
        events = self._output.end()
        if self._status() == "incomplete":
            self._output.items[-1]["status"] = "incomplete"
        return events

    def _status(self) -> str:
        return "incomplete" if self._finish_reason in _INCOMPLETE else "completed"

    def _event(self, event: Event) -> bytes:
        kind, told = event
        self._number += 1
        body = {"type": kind, "sequence_number": self._number, **told}
        return b"event: " + kind.encode() + b"\ndata: " + _encode(body) + b"\n\n"

    def _response(self, status: str) -> dict[str, Any]:
        asked = self._asked
        text = asked.text
        why = _INCOMPLETE.get(self._finish_reason or "") if status == "incomplete" else None
        response: dict[str, Any] = {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._head.get("created") or 0,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None if why is None else {"reason": why},
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": asked.max_tool_calls,
            "metadata": asked.metadata or {},
            "model": self._head.get("model") or asked.model,
            "output": [] if status == "in_progress" else self._output.items,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": asked.reasoning and asked.reasoning.effort, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": (text and text.format) or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else _usage(self._usage),
            "user": asked.user,
        }
        if text is not None and text.verbosity is not None:
            response["text"]["verbosity"] = text.verbosity
        if self._ours is not None:
            response["headgate"] = self._ours
        return response


def _logprobs(choice: dict[str, Any]) -> list[Any] | None:
    found: list[Any] | None = (choice.get("logprobs") or {}).get("content")
    return found


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    """A chat's usage in this API's words; ours goes along."""
    if usage is None:
        return None
    prompt = usage.get("prompt_tokens_details") or {}
    answer = usage.get("completion_tokens_details") or {}
    told = {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": prompt.get("cached_tokens") or 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": answer.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }
    return {**told, "headgate": usage["headgate"]} if "headgate" in usage else told
