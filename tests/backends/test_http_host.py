"""What hosts our servers: draining, sockets, keys, dying with the parent."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import GenerateRequest
from backends.errors import BackendStreamError
from backends.http_host import Door
from tests.backends.server_process import ServerProcess, server

BODY = {"model": "echo", "messages": [{"role": "user", "content": "one two three four five"}]}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """An echo server on a Unix socket."""
    with server("backends.echo", uds=tmp_path_factory.mktemp("echo") / "s") as process:
        yield process


def events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line]


def test_whole_and_streamed_answers_over_a_unix_socket(echo: ServerProcess) -> None:
    """The shared HTTP app answers whole and streamed, with usage where it was asked for."""
    with echo.client() as client:
        whole = client.post("/v1/chat/completions", json=BODY).json()
        with client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as got:
            plain = events(got)
        asked = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", "/v1/chat/completions", json=asked) as got:
            counted = events(got)
    assert plain[-1] == counted[-1] == "[DONE]"
    chunks = [json.loads(line) for line in plain[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert not any(chunk.get("usage") for chunk in chunks)
    assert json.loads(counted[-2])["usage"] == whole["usage"]


def test_huge_body_is_refused(echo: ServerProcess) -> None:
    """Above 32 MiB a body is refused, in OpenAI's shape, and the server goes on."""
    with echo.client() as client:
        refused = client.post("/v1/chat/completions", content=b" " * (33 * 2**20))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "request_too_large")
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200


def test_running_stream_finishes_while_new_requests_are_turned_away(tmp_path: Path) -> None:
    """SIGTERM drains: the stream ends whole, others get 503 with Retry-After, then it exits 0."""
    with server("backends.echo", "--token-delay-s", "0.15", uds=tmp_path / "s") as process:
        lines: list[str] = []
        started = threading.Event()

        def read() -> None:
            body = {**BODY, "stream": True}
            with (
                process.client() as client,
                client.stream("POST", "/v1/chat/completions", json=body) as got,
            ):
                for line in got.iter_lines():
                    lines.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(5)
        process.signal(signal.SIGTERM)
        time.sleep(0.1)
        with process.client() as client:
            refused = client.post("/v1/chat/completions", json=BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "draining"
            assert client.get("/health/live").status_code == 200
            assert client.get("/health/ready").status_code == 503
            assert client.get("/health").json()["status"] == "draining"
            assert client.get("/v1/models").status_code == 200
        reader.join(5)
        assert "data: [DONE]" in lines
        assert process.process.wait(5) == 0
        assert not (tmp_path / "s").exists()


def test_second_signal_ends_at_once(tmp_path: Path) -> None:
    """An impatient operator's second SIGINT does not wait for the stream."""
    with server("backends.echo", "--token-delay-s", "5", uds=tmp_path / "s") as process:
        body = {**BODY, "stream": True}
        with process.client() as client, client.stream("POST", "/v1/chat/completions", json=body):
            process.signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.process.poll() is None
            process.signal(signal.SIGINT)
            assert process.process.wait(6) == 0


def test_socket_of_a_killed_server_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    """kill -9 leaves a socket behind that the next server removes; a living one it refuses."""
    uds = tmp_path / "s"
    with server("backends.echo", uds=uds) as first:
        first.signal(signal.SIGKILL)
        first.process.wait(5)
    assert uds.exists()
    with server("backends.echo", uds=uds):
        second = subprocess.run(
            [sys.executable, "-m", "backends.echo", "--uds", str(uds)],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert second.returncode != 0
        assert b"another server listens" in second.stderr


async def test_hundreds_of_streams_do_not_shut_out_the_health_check(tmp_path: Path) -> None:
    """With 300 streams open, all are served and a probe is answered at once."""
    with server("backends.echo", "--token-delay-s", "0.3", uds=tmp_path / "s") as process:
        backend = OpenAIHTTPBackend("busy", uds=process.uds)

        async def read(name: str) -> int:
            request = GenerateRequest(request_id=name, endpoint="chat/completions", body=BODY)
            return len([chunk async for chunk in backend.stream(request)])

        streams = [asyncio.create_task(read(f"r{place}")) for place in range(300)]
        async with asyncio.timeout(20):
            while (health := await backend.probe()).running < 300:
                assert health.ready
                await asyncio.sleep(0.05)
            assert len(set(await asyncio.gather(*streams))) == 1
        await backend.aclose()


async def test_server_killed_in_mid_stream_is_a_stream_error(tmp_path: Path) -> None:
    """kill -9 under a running stream: what came is delivered, then a clear error, at once."""
    with server("backends.echo", "--token-delay-s", "0.1", uds=tmp_path / "s") as process:
        backend = OpenAIHTTPBackend("doomed", uds=tmp_path / "s")
        stream = backend.stream(
            GenerateRequest(request_id="r", endpoint="chat/completions", body=BODY)
        )
        first = await anext(stream)
        assert first.body["choices"]
        process.signal(signal.SIGKILL)
        with pytest.raises(BackendStreamError, match="doomed"):
            await asyncio.wait_for(_exhaust(stream), 5)
        assert not (await backend.probe()).ready
        await backend.aclose()


def test_server_dies_with_its_parent(tmp_path: Path) -> None:
    """A supervisor killed with -9 leaves no children behind."""
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'backends.echo', '--uds', sys.argv[1],\n"
        "    '--parent-pid', str(os.getpid())])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    uds = tmp_path / "s"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(uds)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    _until(lambda: uds.exists())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: not _alive(child))
    assert not uds.exists()


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/v1/models", None, 401),
        ("/v1/models", "Bearer wrong", 401),
        ("/v1/models", "Bearer right", 200),
        ("/health", None, 200),
        ("/health/ready", None, 200),
        ("/metrics", None, 401),
    ],
)
async def test_keys_guard_everything_but_health(path: str, key: str | None, status: int) -> None:
    """With keys set, only the three health paths answer without one."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"authorization", key.encode())] if key else []
    door = Door(app, api_keys=["right"])
    await door({"path": path, "headers": headers}, None, send)
    assert sent[0]["status"] == status
    assert door.in_flight == 0


async def _exhaust(stream: Any) -> None:
    async for _ in stream:
        pass


def _alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1][:3]
    return False


def _until(holds: Any, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
