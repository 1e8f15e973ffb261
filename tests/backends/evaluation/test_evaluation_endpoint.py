"""Models behind an endpoint: what can be measured there, and what goes wrong there."""

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest

from backends.contract import BackendHealth, Chunk, Completion, GenerateRequest, Usage
from backends.echo import EchoBackend
from backends.errors import BackendError, BackendUnavailableError, InvalidRequestError
from backends.evaluation.candidate import Answer, NoBits
from backends.evaluation.endpoint_candidate import EndpointCandidate
from backends.evaluation.items import Item, Text
from backends.evaluation.run import measure, read_suites


def items(*prompts: str) -> list[Item]:
    """Questions whose answer is the question."""
    return [
        Item(id=str(number), prompt=prompt, answers=(prompt,), part="p", task="t")
        for number, prompt in enumerate(prompts)
    ]


def ignore(count: int) -> None:
    """Take no notice of progress."""


class Scripted:
    """A `Backend` that answers chats with `reply` and echoes prompts, a bit for every character."""

    def __init__(self, *, refuses: tuple[str, ...] = (), echoes: bool = True) -> None:
        self.name = "scripted"
        self.bodies: list[Mapping[str, Any]] = []
        self._refuses, self._echoes = refuses, echoes

    async def generate(self, request: GenerateRequest) -> Completion:
        """Answer, or refuse a field."""
        self.bodies.append(request.body)
        for field in self._refuses:
            if field in request.body:
                raise InvalidRequestError(f"{field!r} is not supported", param=field)
        if request.endpoint == "completions":
            prompt = request.body["prompt"] if self._echoes else ""
            choice = {
                "text": prompt + "!",
                "logprobs": {
                    "text_offset": list(range(len(prompt) + 1)),
                    "token_logprobs": [None, *[-0.6931471805599453] * len(prompt)],
                },
            }
            return Completion(body={"choices": [choice]})
        choice = {"message": {"content": "Hello there"}, "finish_reason": "stop"}
        usage = Usage(prompt_tokens=3, completion_tokens=2)
        return Completion(body={"choices": [choice]}, usage=usage)

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """Never asked for."""
        raise NotImplementedError

    async def probe(self) -> BackendHealth:
        """Ready."""
        return BackendHealth(ready=True)

    async def count_tokens(self, body: Mapping[str, Any]) -> int | None:
        """Unknown."""
        return None

    async def usage_of(self, request_id: str) -> Usage | None:
        """Unknown."""
        return None

    async def aclose(self) -> None:
        """Nothing to close."""


def test_answers_come_back_in_order_greedy_and_past_the_caches() -> None:
    """Forty questions at sixteen a time keep their order; each asks for the likeliest answer."""
    backend = EchoBackend(ns_per_token=1000)
    candidate = EndpointCandidate("echo", backend, "echo", source="echo")
    asked = items(*(f"question {number}" for number in range(40)))
    answers = candidate.answer(asked, ignore)
    assert [answer.text for answer in answers] == [f"You said: {item.prompt}" for item in asked]
    assert all(answer.machine_ns for answer in answers)
    assert candidate.machine_time == "engine"
    assert all(request.body["temperature"] == 0.0 for request in backend.requests)
    assert all(request.headers["x-headgate-cache"] == "off" for request in backend.requests)
    assert len({request.request_id for request in backend.requests}) == 40
    candidate.close()


def test_wall_time_is_shared_out_where_the_server_tells_none() -> None:
    """The answers' machine times add up to about the time that all took together."""
    candidate = EndpointCandidate("s", Scripted(), "m", source="s")
    answers = candidate.answer(items("a", "b", "c"), ignore)
    assert candidate.machine_time == "wall"
    times = {answer.machine_ns for answer in answers}
    assert len(times) == 1
    assert times.pop()
    candidate.close()


def test_logprobs_are_left_out_where_the_server_refuses_them() -> None:
    """A server that knows no `logprobs` is asked without them from the second try on."""
    backend = Scripted(refuses=("logprobs",))
    candidate = EndpointCandidate("s", backend, "m", source="s")
    answers = candidate.answer(items("a", "b"), ignore)
    assert [answer.text for answer in answers] == ["Hello there"] * 2
    assert ["logprobs" in body for body in backend.bodies] == [True, False, False]
    assert answers[0].mean_logprob is None
    candidate.close()


def test_bits_per_byte_come_from_echoed_prompts() -> None:
    """A bit for every character is a bit per byte of ASCII, the first token's byte left out."""
    candidate = EndpointCandidate("s", Scripted(), "m", source="s")
    texts = [Text(part=part, source="", text=f"text number {part}") for part in ("a", "b", "b")]
    assert candidate.text_bits(texts) == {"a": pytest.approx(1.0), "b": pytest.approx(1.0)}
    candidate.close()


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Scripted(refuses=("echo",)), "refuses `echo`"),
        (Scripted(echoes=False), "no log-probabilities of the prompt"),
        (EchoBackend(), "no log-probabilities of the prompt|refuses"),
    ],
)
def test_bits_are_skipped_with_a_reason(backend: Any, reason: str) -> None:
    """Where prompts' log-probabilities are not served, a reason takes the figure's place."""
    candidate = EndpointCandidate("s", backend, "m", source="s")
    with pytest.raises(NoBits, match=reason):
        candidate.text_bits([Text(part="a", source="", text="some text")])
    found = measure(candidate, read_suites(["lm", "docs"], limit=2)).evaluation
    assert found.bits_per_byte is None
    assert found.bits_skipped
    candidate.close()


def test_dead_endpoint_ends_the_measurement() -> None:
    """A server that is not there, or goes away on the way, is one clear error."""
    down = EndpointCandidate("e", EchoBackend(fault="refuse"), "m", source="e")
    with pytest.raises(BackendUnavailableError):
        down.answer(items("a", "b"), ignore)
    faults = [None, None, *["refuse"] * 40]
    dying = EndpointCandidate("e", EchoBackend(faults=faults), "m", source="e")  # type: ignore[arg-type]
    with pytest.raises(BackendError):
        dying.answer(items(*map(str, range(30))), ignore)


def test_single_failures_count_as_failed_questions() -> None:
    """An error on one question is that question's, and the rest is measured."""
    candidate = EndpointCandidate("e", EchoBackend(faults=[None, "error", None]), "m", source="e")
    answers = candidate.answer(items("a", "b", "c"), ignore)
    assert sorted(answer.error is None for answer in answers) == [False, True, True]
    assert all(isinstance(answer, Answer) for answer in answers)
    candidate.close()


def test_server_gives_the_figures_of_the_model_in_process() -> None:
    """Our own engine over HTTP answers word for word as in this process, and tells its time."""
    from backends.evaluation.engine_candidate import EngineCandidate
    from backends.evaluation.items import read_items
    from backends.evaluation.targets import open_target, parse_target
    from tests.backends.server_process import ServerProcess

    asked = read_items("tasks")[:40]
    here = EngineCandidate("nano", "bundled:nano").answer(asked, ignore)
    server = ServerProcess("backends.server", "--model", "bundled:nano")
    try:
        server.wait_ready()
        target = parse_target(f"{server.url}/v1#bundled:nano")
        candidate = open_target(target)
        there = candidate.answer(asked, ignore)
        with pytest.raises(NoBits):
            candidate.text_bits([Text(part="p", source="", text="Once upon a time")])
        candidate.close()
        unknown = open_target(parse_target(f"{server.url}/v1#x"))
        with pytest.raises(BackendError, match="does not know"):
            unknown.answer(asked, ignore)
        unknown.close()
    finally:
        server.stop()
    assert [answer.text for answer in there] == [answer.text for answer in here]
    assert [answer.completion_tokens for answer in there] == [a.completion_tokens for a in here]
    assert candidate.machine_time == "engine"
