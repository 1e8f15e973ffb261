"""Cascades end to end: who answers, what the client sees, what it costs, what is remembered."""

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Completion, GenerateRequest
from backends.echo import EchoBackend
from gateway.dispatch import cascade
from gateway.settings import CacheSettings, ExactSettings
from tests.gateway.dispatch.climbing import SURE, UNSURE, echoes, ladder
from tests.gateway.serving import decode, events, gateway, text_of


def content(answer: Any) -> str:
    return str(decode(answer)["choices"][0]["message"]["content"])


def kinds(settlement: Any) -> list[tuple[str, str]]:
    return [(charge.kind, charge.backend) for charge in settlement.charges]


async def test_sure_answer_stands(tmp_path: Path) -> None:
    """The first rung answers, one charge is booked, and its log-probabilities stay inside."""
    backends = echoes(low=SURE)
    async with gateway(ladder(tmp_path), backends) as served:
        answer = await served.chat()
        assert content(answer) == "it is five"
        assert answer.headers["x-headgate-backend"] == "low"
        assert answer.headers["x-headgate-rungs"] == "low=0.990"
        assert decode(answer)["choices"][0]["logprobs"] is None
        assert backends["low"].requests[0].body["logprobs"] is True
        assert not backends["high"].requests
        assert kinds(await served.settled(answer)) == [("answer", "low")]


async def test_unsure_answer_goes_up_with_its_words_as_a_draft(tmp_path: Path) -> None:
    """The next rung answers and gets the rejected words; both are booked; the verdict is kept."""
    backends = echoes()
    async with gateway(ladder(tmp_path), backends) as served:
        answer = await served.chat()
        assert content(answer) == "it is four"
        assert answer.headers["x-headgate-rungs"] == "low=0.135, high=unjudged"
        sent = backends["high"].requests[0].body
        assert sent["prediction"] == {"type": "content", "content": "it is five"}
        assert "logprobs" not in sent
        details = decode(answer)["usage"]["completion_tokens_details"]
        assert details["rejected_prediction_tokens"] == 0  # the client sent no prediction
        settled = await served.settled(answer)
        assert kinds(settled) == [("rung", "low"), ("answer", "high")]
        total = sum(charge.cost_nano_usd for charge in settled.charges)
        assert Decimal(answer.headers["x-headgate-cost-usd"]) == Decimal(total) / 10**9
        low, high = settled.request.attempts
        assert low.verdict is not None
        assert (low.verdict.judge, low.verdict.accepted) == ("logprob", False)
        assert low.verdict.p_good == pytest.approx(0.1353, abs=1e-3)
        assert high.verdict is not None
        assert high.verdict.accepted


@pytest.mark.parametrize("low", [SURE, UNSURE])
async def test_stream_begins_when_it_is_settled(tmp_path: Path, low: float) -> None:
    """The client sees one answer, its backend in the headers, and no log-probabilities."""
    async with gateway(ladder(tmp_path), echoes(low=low)) as served:
        answer = await served.chat(stream=True, stream_options={"include_usage": True})
        chunks = events(answer)
        winner = "low" if low == SURE else "high"
        assert text_of(chunks) == ("it is five" if low == SURE else "it is four")
        assert answer.headers["x-headgate-backend"] == winner
        assert chunks[-1]["headgate"]["rungs"].startswith("low=")
        assert chunks[-1]["usage"]["completion_tokens"] == 3
        told = [c.get("logprobs") for chunk in chunks for c in chunk.get("choices", ())]
        assert not any(told)


async def test_clients_that_accept_restarts_see_answers_at_once(tmp_path: Path) -> None:
    """The rejected answer is streamed, taken back by a restart event, and followed by the next."""
    headers = {"x-headgate-accept-restart": "1"}
    async with gateway(ladder(tmp_path), echoes()) as served:
        chunks = events(await served.chat(stream=True, headers=headers))
        cut = next(i for i, c in enumerate(chunks) if c.get("headgate", {}).get("restart"))
        assert chunks[cut]["choices"] == []
        assert "low rejected by logprob" in chunks[cut]["headgate"]["reason"]
        assert text_of(chunks[:cut]) == "it is five"
        assert text_of(chunks[cut:]) == "it is four"
        assert not any(c.get("logprobs") for chunk in chunks for c in chunk["choices"])
    async with gateway(ladder(tmp_path), echoes(low=SURE)) as served:
        chunks = events(await served.chat(stream=True, headers=headers))
        assert text_of(chunks) == "it is five"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    forbidden = "judge = 'logprob', min = 0.5, restart = false"
    async with gateway(ladder(tmp_path, forbidden), echoes()) as served:
        chunks = events(await served.chat(stream=True, headers=headers))
        assert text_of(chunks) == "it is four"


async def test_stream_is_kept_alive_until_it_is_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While rungs are slow, comments come, and the answer after them is whole."""
    monkeypatch.setattr(cascade, "KEEP_ALIVE_S", 0.02)
    async with gateway(ladder(tmp_path), echoes(low_={"delay_s": 0.1})) as served:
        answer = await served.chat(stream=True)
        assert answer.text.startswith(": the answer is not settled yet\n\n")
        assert text_of(events(answer)) == "it is four"


async def test_logprobs_are_shown_as_asked_for(tmp_path: Path) -> None:
    """A client that wants one alternative gets one, though the judge read five."""
    async with gateway(ladder(tmp_path), echoes(low=SURE)) as served:
        answer = await served.chat(logprobs=True, top_logprobs=1)
        entries = decode(answer)["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in entries] == [1, 1, 1]


async def test_settled_answer_is_cached_for_the_same_cascade_only(tmp_path: Path) -> None:
    """A repeat is answered without asking anybody; another bar settles anew."""
    chosen = ladder(tmp_path, cache=CacheSettings(redis="memory", exact=ExactSettings()))
    backends = echoes()
    async with gateway(chosen, backends) as served:
        assert served.parts.caches is not None
        await served.chat(temperature=0)
        await served.parts.caches.settled()
        again = await served.chat(temperature=0)
        assert again.headers["x-headgate-cache"] == "exact"
        assert again.headers["x-headgate-backend"] == "high"
        assert content(again) == "it is four"
        assert len(backends["low"].requests) == 1
        policy = (tmp_path / "policies" / "test.toml").read_text()
        (tmp_path / "policies" / "lower.toml").write_text(policy.replace("0.5", "0.1"))
        lower = await served.chat(temperature=0, headers={"x-headgate-policy": "lower"})
        assert (lower.headers["x-headgate-cache"], content(lower)) == ("miss", "it is five")


@pytest.mark.parametrize("fault", ["cut", "error", "overload", "hang"])
async def test_rung_that_fails_is_passed_over(tmp_path: Path, fault: str) -> None:
    """The next rung answers alone, whatever went wrong below."""
    backends = echoes()
    backends["low"].fault = fault  # type: ignore[assignment]
    chosen = ladder(tmp_path)
    async with gateway(chosen, backends) as served:
        answer = await served.chat(headers={"x-headgate-deadline-ms": "3000"})
        assert content(answer) == "it is four"
        assert answer.headers["x-headgate-rungs"] == "low=failed, high=unjudged"


@pytest.mark.parametrize("fault", ["error", "hang"])
async def test_best_rejected_answer_stands_where_nobody_above_answers(
    tmp_path: Path, fault: str
) -> None:
    """A doubtful answer is better than an error or a deadline; it is booked, but not cached."""
    backends = echoes()
    backends["high"].fault = fault  # type: ignore[assignment]
    async with gateway(ladder(tmp_path), backends) as served:
        answer = await served.chat(headers={"x-headgate-deadline-ms": "600"}, temperature=0)
        assert (answer.status_code, content(answer)) == (200, "it is five")
        assert answer.headers["x-headgate-backend"] == "low"
        settled = await served.settled(answer)
        assert kinds(settled)[0] == ("answer", "low")
        assert settled.request.outcome == "ok"
        again = await served.chat(headers={"x-headgate-deadline-ms": "600"}, temperature=0)
        assert again.headers["x-headgate-cache"] == "miss"


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_else_is_asked_where_the_time_is_up(tmp_path: Path, stream: bool) -> None:
    """With less time left than giving an answer takes, the rejected one stands: none is paid for
    beside it."""
    backends = echoes()
    async with gateway(ladder(tmp_path), backends) as served:
        for _ in range(20):  # until the machine is quick enough for the first rung
            answer = await served.chat(headers={"x-headgate-deadline-ms": "50"}, stream=stream)
            settled = await served.settled(answer)
            if answer.status_code == 200 and settled.request.attempts[0].verdict is not None:
                break
        assert (answer.status_code, settled.request.outcome) == (200, "ok")
        assert kinds(settled) == [("answer", "low")]
        assert [attempt.backend for attempt in settled.request.attempts] == ["low"]


async def test_a_rung_that_cannot_be_in_time_is_not_asked(tmp_path: Path) -> None:
    """Where it is known to take far longer than is left, the answer in hand is given at once."""
    backends = echoes(high={"delay_s": 1.5})
    async with gateway(ladder(tmp_path), backends) as served:
        await served.settled(await served.chat())
        began = time.perf_counter()
        answer = await served.chat("another", headers={"x-headgate-deadline-ms": "600"})
        assert time.perf_counter() - began < 0.5
        assert content(answer) == "it is five"
        assert kinds(await served.settled(answer)) == [("answer", "low")]


class Slow(EchoBackend):
    """Says when it is asked, and never answers."""

    def __init__(self, name: str) -> None:
        super().__init__(name, delay_s=60.0)
        self.asked = asyncio.Event()

    async def generate(self, request: GenerateRequest) -> Completion:
        """Wait for ever."""
        self.asked.set()
        return await super().generate(request)


async def test_cancelled_climb_books_what_was_used(tmp_path: Path) -> None:
    """A client that leaves during the second rung pays for the first one, and for what began."""
    high = Slow("high")
    async with gateway(ladder(tmp_path), {**echoes(), "high": high}) as served:
        task = asyncio.create_task(served.chat(headers={"x-request-id": "gone"}))
        async with asyncio.timeout(10):
            await high.asked.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = await served.parts.ledger.find("gone")
        assert found is not None
        assert found.request.outcome == "cancelled"
        assert kinds(found)[0] == ("rung", "low")


async def test_cap_cuts_the_ladder_where_it_would_be_passed(tmp_path: Path) -> None:
    """With money for one rung only, that one answers; with less, nobody."""
    backends = echoes()
    async with gateway(ladder(tmp_path), backends) as served:
        answer = await served.chat(max_tokens=3, headers={"x-headgate-max-cost-usd": "0.02"})
        assert (content(answer), len(backends["high"].requests)) == ("it is five", 0)
        answer = await served.chat(max_tokens=3, headers={"x-headgate-max-cost-usd": "0.001"})
        assert answer.status_code == 400
        assert decode(answer)["error"]["code"] == "max_cost_exceeded"
