"""`headgate bench serve`: the load it makes, and what it reckons was computed."""

import asyncio
import json
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.bench.load_client import Answered
from backends.bench.serve import main, paced, poisson, requests
from backends.bench.served_work import WORK, work_rows
from backends.bench.traces import TraceRequest

COSTS = np.array([2e-3, 1e-4, 1e-6, 5e-5, 1e-8, 1e-3])
"""Seconds of one of each column of WORK, as far as the engine below knows them."""


class _Server:
    """Streams exactly max_tokens pieces a request; refuses every prompt of 1313 tokens."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, object]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self._server = started.result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readline():
            while not head.endswith(b"\r\n\r\n"):
                head += await reader.readline()
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = json.loads(await reader.readexactly(length))
            self.bodies.append(body)
            if len(body["prompt"]) == 1313:
                writer.write(b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\noops")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(body["max_tokens"]):
                writer.write(b'10\r\ndata: {"a": 1}\n\n\r\n')
                await writer.drain()
            writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server()
    yield made
    made.stop()


def test_loads_are_the_same_every_time() -> None:
    """Lengths around the means with a bounded tail; a trace keeps its gaps at another rate."""
    asked = requests(200, 50)
    assert asked == requests(200, 50)
    lengths = [one.prompt_tokens for one in asked]
    assert sum(lengths) / len(lengths) == pytest.approx(200, rel=0.15)
    assert max(lengths) <= 800
    assert {one.prompt_tokens for one in requests(200, 50, spread=False)} == {200}
    load = poisson(asked, 50.0, 40.0)
    assert len(load) == pytest.approx(2000, rel=0.1)
    assert load[256].prompt_tokens == load[0].prompt_tokens
    trace = [TraceRequest(at_s=at, prompt_tokens=100, output_tokens=9) for at in (5.0, 6.0, 9.0)]
    assert [one.at_s for one in paced(trace, 2.0, 0.5)] == [0.0, 0.25, 1.0]
    assert paced(trace, 2.0, 0.5)[0].prompt_tokens == 50


def _engine(arrivals: list[tuple[float, int, int]]) -> list[Answered]:
    """Answer (at, prompt, output) by steps of known cost: one prompt a step, all decodes."""
    answers = [Answered(prompt, output, at, array("d")) for at, prompt, output in arrivals]
    waiting, running, now, begun = list(answers), [], 0.0, 0
    while waiting or running:
        if not running:
            now, begun = max(now, waiting[0].sent_s), 0
        work = np.zeros(6)
        work[0], new = 1, None
        for one in running:
            work[1] += 1
            work[2] += one.prompt_tokens + len(one.times_s)
        if waiting and waiting[0].sent_s <= now:
            new = waiting.pop(0)
            prompt = new.prompt_tokens
            work[3:5] = prompt, prompt * (prompt + 1) / 2
        work[5], begun = begun, int(new is not None)
        now += float(COSTS @ work)
        for one in [*running, *([new] if new else [])]:
            one.times_s.append(now)
        running = [one for one in [*running, *([new] if new else [])]
                   if len(one.times_s) < one.output_tokens]  # fmt: skip
    return answers


def test_work_is_what_the_engine_did() -> None:
    """Each row's parts times what they cost are its seconds: of growing answers, of stretches of
    time, of lone first tokens."""
    load = [(0.013 * n + (0.5 if n > 30 else 0), 20 + 31 * n % 90, 2 + 13 * n % 40)
            for n in range(60)]  # fmt: skip
    rows = np.array(work_rows(_engine(load)))
    assert rows.shape[1] == len(WORK)
    assert len(rows) > 40
    computed = rows[:, :6] @ COSTS
    whole = rows[:, 6] == 0  # without waiting for the first request after a pause
    assert whole.sum() > 35
    assert computed[whole] == pytest.approx(rows[whole, 7], rel=1e-3)


def test_load_on_a_server_gives_a_file_for_the_planner(
    server: _Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Closed, random and recorded loads; prompts differ, answers are as long as asked; a server's
    errors are counted, and none at all is an error of ours."""
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"2023-11-16 18:15:{n:02d}.0,40,4\n" for n in range(9))
    )
    flags = ["--base-url", server.url, "--model", "m", "--shape", "8B", "--quantization", "int8"]
    short = ["--prompt-tokens", "30", "--output-tokens", "6", "--seconds", "0.2", "--json"]
    assert main([*flags, *short, "--concurrency", "3", "--rate", "40"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commit"]
    assert (found["model"], found["quantization"]) == ("8B", "int8")
    closed, random = found["results"]
    assert closed["load"] == "3 at once"
    assert closed["errors"] == random["errors"] == 0
    assert closed["requests_per_s"] > random["requests_per_s"] > 0
    assert closed["work"]["columns"] == list(WORK)
    prompts = [tuple(body["prompt"]) for body in server.bodies]  # type: ignore[call-overload]
    assert len(set(prompts)) == len(prompts)
    recorded = [*flags, *short, "--trace", str(trace), "--rate", "30"]
    assert main(recorded) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert (result["load"], result["prompt_tokens"], result["requests"]) == ("trace.csv", 40, 6)
    wrong = [*flags, "--prompt-tokens", "1313", "--lengths", "fixed", "--concurrency", "1"]
    assert main([*wrong, "--seconds", "0.1"]) == 2
    assert "nothing was answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--concurrency", "0"], 2, "--concurrency"),
        (["--rate", "x"], 2, "--rate"),
        ([], 2, "give a load"),
        (["--trace", "no.csv"], 2, "one --rate"),
        (["--concurrency", "1", "--seconds", "0"], 2, "--seconds"),
        (["--concurrency", "1", "--base-url", "http://127.0.0.1:1/v1"], 1, "refused"),
    ],
)
def test_bad_flags_are_refused_by_name(
    flags: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 for what was asked wrongly, 1 for a server that is not there."""
    assert main(["--model", "m", *flags]) == code
    assert words in capsys.readouterr().err
