"""The worker as a process of its own: Granian, the OpenAI SDK, disconnects, draining, dying."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from gateway.processes.runtime import RUNTIME_ENV, Address, Runtime
from gateway.settings import BackendSettings, ServerSettings
from migrations import upgrade
from tests.gateway.serving import settings

WORDS = 40
WORD_DELAY_S = 0.05


def free_port() -> int:
    """A port that nobody listens on."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Worker:
    """A gateway worker in front of two echo servers, a fast and a slow one."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        sockets = {name: folder / f"{name}.sock" for name in ("fast", "slow")}
        chosen = settings(
            folder,
            *(BackendSettings(name=name, model=name, kind="engine") for name in sockets),
            server=ServerSettings(port=self.port, workers=workers, drain_timeout_s=10),
        )
        (folder / "policies" / "test.toml").write_text('[default]\nroute = "fast"\n')
        (folder / "policies" / "slow.toml").write_text('[default]\nroute = "slow"\n')
        (folder / "state").mkdir()
        database = f"sqlite+aiosqlite:///{folder / 'state' / 'headgate.db'}"
        upgrade(database)
        Runtime(
            settings=chosen,
            addresses={name: Address(uds=str(path)) for name, path in sockets.items()},
            database_url=database,
            state_dir=str(folder / "state"),
            run_dir=str(folder),
            started_at=time.time(),
        ).save(folder / "runtime.json")
        for name, path in sockets.items():
            command = [sys.executable, "-m", "backends.echo", "--uds", str(path), "--model", name]
            if name == "slow":
                command += ["--tokens", str(WORDS), "--token-delay-s", str(WORD_DELAY_S)]
            self._spawn(command)
        self.process = self._spawn([sys.executable, "-m", "gateway.processes.worker"])
        self._wait()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        env = {**os.environ, RUNTIME_ENV: str(self.folder / "runtime.json")}
        process = subprocess.Popen(command, env=env, stderr=(self.folder / "log").open("ab"))
        self.processes.append(process)
        return process

    def _wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                health = httpx.get(f"{self.url}/health", timeout=2).json()
                if all(backend["ready"] for backend in health["backends"]):
                    return
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.05)

    def sdk(self) -> openai.OpenAI:
        """The OpenAI SDK pointed at it."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="x", max_retries=0, timeout=30)

    def row(self, request_id: str) -> dict[str, Any]:
        """What /requests/{id} says, waited for."""
        deadline = time.monotonic() + 10
        while True:
            answer = httpx.get(f"{self.url}/requests/{request_id}", timeout=5)
            if answer.status_code == 200:
                told: dict[str, Any] = answer.json()["request"]
                return told
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.05)

    def stop(self) -> None:
        """End what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for the tests that leave it running."""
    worker = Worker(tmp_path_factory.mktemp("w"))
    yield worker
    worker.stop()


def ask(**fields: Any) -> dict[str, Any]:
    """A chat's arguments."""
    return {"model": "auto", "messages": [{"role": "user", "content": "hello there"}], **fields}


def test_sdk_gets_answers_whole_and_streamed(shared: Worker) -> None:
    """The OpenAI SDK reads answers, streams with usage, and our headers."""
    client = shared.sdk()
    raw = client.chat.completions.with_raw_response.create(**ask())
    assert raw.headers["x-headgate-backend"] == "fast"
    assert raw.parse().choices[0].message.content == "You said: hello there"
    chunks = list(
        client.chat.completions.create(**ask(stream=True, stream_options={"include_usage": True}))
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "You said: hello there"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4
    told = (chunks[-1].model_extra or {})["headgate"]
    assert told["backend"] == "fast"
    assert "fast" in {model.id for model in client.models.list()}


def test_sdk_raises_its_error_classes(shared: Worker) -> None:
    """Refusals arrive as the SDK's own exceptions, with code and param."""
    client = shared.sdk()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**ask(model="nobody"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(**ask(max_tokens=-1))
    assert bad.value.param == "max_tokens"


def test_refusal_before_the_body_is_read_leaves_the_server_well(shared: Worker) -> None:
    """A megabyte that nobody reads does not disturb the next request of the same client."""
    with httpx.Client(base_url=shared.url, timeout=10) as client:
        for _ in range(3):
            assert client.put("/v1/chat/completions", content=b"x" * 2**20).status_code == 405
            assert client.post("/v1/chat/completions", json=ask()).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_cancels_and_is_booked(shared: Worker, stream: bool) -> None:
    """Closing the connection ends the backend's work early, and what was used is in the ledger."""
    name = f"left-{stream}"
    body = ask(model="slow", stream=stream)
    with contextlib.suppress(httpx.ReadTimeout), httpx.Client(timeout=0.6) as client:
        headers = {"x-request-id": name, "x-headgate-policy": "slow"}
        url = f"{shared.url}/v1/chat/completions"
        with client.stream("POST", url, json=body, headers=headers) as answer:
            for number, _ in enumerate(answer.iter_lines()):
                if number > 8:
                    break
    row = shared.row(name)
    assert row["outcome"] == "cancelled"
    assert row["duration_ms"] < WORDS * WORD_DELAY_S * 1000
    if stream:
        assert 0 < row["completion_tokens"] < WORDS


def test_gateway_is_small_and_has_no_torch(shared: Worker) -> None:
    """At most 150 MB resident, and nothing of torch is loaded."""
    assert psutil.Process(shared.process.pid).memory_info().rss < 150e6
    script = textwrap.dedent(
        """
        import sys
        import gateway.processes.worker, gateway.app
        heavy = {"torch", "transformers", "sentence_transformers", "triton"} & set(sys.modules)
        assert not heavy, heavy
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_drain_lets_streams_finish_and_refuses_new_requests(tmp_path: Path) -> None:
    """After SIGTERM a running stream ends whole, a new request gets 503, the process exits 0."""
    worker = Worker(tmp_path)
    try:
        client = httpx.Client(timeout=30)
        headers = {"x-headgate-policy": "slow"}
        url = f"{worker.url}/v1/chat/completions"
        with client.stream("POST", url, json=ask(stream=True), headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            worker.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            refused = httpx.post(url, json=ask(), timeout=5)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "service_unavailable"
            assert int(refused.headers["retry-after"]) >= 1
            assert list(lines)[-2] == "data: [DONE]"
        assert worker.process.wait(10) == 0
    finally:
        worker.stop()


def test_two_workers_share_the_port_and_the_metrics(tmp_path: Path) -> None:
    """With workers = 2 both answer, /metrics adds them up, and both go with the first."""
    worker = Worker(tmp_path, workers=2)
    try:
        for _ in range(12):  # a fresh connection each: the kernel spreads them
            assert httpx.post(f"{worker.url}/v1/chat/completions", json=ask()).status_code == 200
        counts = {_answered(worker) for _ in range(4)}
        assert counts == {12.0}
        children = psutil.Process(worker.process.pid).children(recursive=True)
        assert len(children) == 1
        worker.process.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive
    finally:
        worker.stop()


def _answered(worker: Worker) -> float:
    text = httpx.get(f"{worker.url}/metrics", timeout=5).text
    counted = [
        float(line.rsplit(" ", 1)[1])
        for line in text.splitlines()
        if line.startswith("headgate_requests_total{") and 'outcome="ok"' in line
    ]
    return sum(counted)
