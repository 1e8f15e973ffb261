"""Embeddings behind HTTP: vectors, batching, bad input, and our package `kernels` beside it."""

import asyncio
import base64
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from click.testing import CliRunner

from backends.client.openai_http import OpenAIHTTPBackend
from backends.contract import GenerateRequest
from backends.encoder import EncoderBackend, main
from backends.encoder_batches import Batcher, Vectors
from backends.errors import BackendResponseError, BackendUnavailableError, InvalidRequestError
from tests.backends.server_process import ServerProcess, server

pytestmark = pytest.mark.long

DIMENSIONS = 4


class LengthEncoder:
    """Counts characters; notes its batches; can be held up and made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.at_work = threading.Event()

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(text) for text in texts]

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.at_work.set()
        self.gate.wait(60)
        self.batches.append(list(texts))
        if "bad" in texts:
            raise RuntimeError("bad text")
        if "deadly" in texts:
            raise SystemExit
        return np.array([[len(text)] * DIMENSIONS for text in texts], dtype=np.float32)


def backend_of(encoder: LengthEncoder) -> EncoderBackend:
    batcher = Batcher(encoder)
    batcher.start()
    return EncoderBackend("len", batcher, dimensions=DIMENSIONS, max_tokens=256, model_revision="r")


def request(value: Any, **fields: Any) -> GenerateRequest:
    body = {"model": "len", "input": value, **fields}
    return GenerateRequest(request_id="r", endpoint="embeddings", body=body)


def rows(body: dict[str, Any]) -> list[float]:
    return [row["embedding"][0] for row in body["data"]]


async def _until(holds: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("not within a minute")


async def test_waiting_requests_share_batches() -> None:
    """What waits while a batch runs is encoded together, and each gets its own vectors."""
    encoder = LengthEncoder()
    backend = backend_of(encoder)
    encoder.gate.clear()
    tasks = [asyncio.create_task(backend.generate(request("x" * n))) for n in range(1, 10)]
    await _until(lambda: backend._batcher.waiting == 9)
    encoder.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [rows(answer.body) for answer in answers] == [[n] for n in range(1, 10)]
    assert [a.usage.prompt_tokens for a in answers if a.usage] == list(range(1, 10))
    assert len(encoder.batches) <= 3
    await backend.aclose()


async def test_single_text_is_not_held_up_by_a_large_request() -> None:
    """A request with many texts shares every batch with those that came after it."""
    encoder = LengthEncoder()
    backend = backend_of(encoder)
    encoder.gate.clear()
    large = asyncio.create_task(backend.generate(request(["ab"] * 500)))
    await _until(encoder.at_work.is_set)
    small = asyncio.create_task(backend.generate(request("c")))
    await _until(lambda: backend._batcher.waiting == 2)
    encoder.gate.set()
    await small
    answer = await large
    assert rows(answer.body) == [2.0] * 500
    assert max(len(batch) for batch in encoder.batches) <= 32
    assert any("c" in batch for batch in encoder.batches[:3])
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 1000
    await backend.aclose()


async def test_cancelled_request_gives_up_its_place() -> None:
    """A request whose client has gone is not encoded."""
    encoder = LengthEncoder()
    backend = backend_of(encoder)
    encoder.gate.clear()
    first = asyncio.create_task(backend.generate(request("first")))
    await _until(encoder.at_work.is_set)
    second = asyncio.create_task(backend.generate(request("second")))
    await _until(lambda: backend._batcher.waiting == 2)
    second.cancel()
    await asyncio.sleep(0)
    encoder.gate.set()
    await first
    await backend.generate(request("third"))
    assert encoder.batches == [["first"], ["third"]]
    assert (await backend.probe()).running == 0
    await backend.aclose()


async def test_failing_batch_fails_its_requests_only() -> None:
    """An error in a batch is those requests' error; the next one is served."""
    backend = backend_of(LengthEncoder())
    with pytest.raises(BackendResponseError, match="bad text"):
        await backend.generate(request("bad"))
    assert rows((await backend.generate(request("good"))).body) == [4]
    await backend.aclose()


async def test_dead_thread_is_unready() -> None:
    """If the thread ends, the waiting request fails, the probe says so, later ones are refused."""
    backend = backend_of(LengthEncoder())
    with pytest.raises(BackendUnavailableError, match="SystemExit"):
        await backend.generate(request("deadly"))
    assert not (await backend.probe()).ready
    with pytest.raises(BackendUnavailableError):
        await backend.generate(request("later"))
    await backend.aclose()


@pytest.mark.parametrize(
    ("value", "fields", "param"),
    [
        ([], {}, "input"),
        ("", {}, "input"),
        (["a", ""], {}, "input"),
        ([1, 2], {}, "input"),
        (["a", 1], {}, "input"),
        (["a"] * 2049, {}, "input"),
        ("a", {"dimensions": 2}, "dimensions"),
    ],
)
async def test_bad_input_is_refused_by_name(value: Any, fields: dict[str, Any], param: str) -> None:
    """Empty texts, token ids, too many texts and other dimensions are refused."""
    backend = backend_of(LengthEncoder())
    with pytest.raises(InvalidRequestError) as caught:
        await backend.generate(request(value, **fields))
    assert caught.value.param == param
    await backend.aclose()


@pytest.fixture(scope="module")
def minilm() -> Iterator[ServerProcess]:
    """MiniLM out of its package, served as `minilm`."""
    with server("backends.encoder", "--served-model-name", "minilm") as process:
        yield process


def test_minilm_through_the_sdk(minilm: ServerProcess) -> None:
    """The SDK gets unit vectors, in base64 (its default) and as floats; like texts are near."""
    texts = [
        "How do I reset my password?",
        "I forgot my password, what now?",
        "Rain in the alps",
    ]
    with openai.OpenAI(base_url=f"{minilm.url}/v1", api_key="any", max_retries=0) as sdk:
        packed = sdk.embeddings.create(model="minilm", input=texts)
        plain = sdk.embeddings.create(model="minilm", input=texts, encoding_format="float")
        first, second, third = (np.array(row.embedding) for row in packed.data)
        assert first.shape == (384,)
        assert np.allclose(first, plain.data[0].embedding, atol=1e-6)
        assert np.linalg.norm(first) == pytest.approx(1, abs=1e-5)
        assert first @ second > 0.7 > 0.3 > first @ third
        assert packed.usage.prompt_tokens == packed.usage.total_tokens > 20
        assert packed.usage.headgate["prefill_ns"] > 0  # type: ignore[attr-defined]
        long = sdk.embeddings.create(model="minilm", input="word " * 2000)
        assert long.usage.prompt_tokens == 256
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.embeddings.create(model="minilm", input="x", dimensions=12)
        assert caught.value.param == "dimensions"
        with pytest.raises(openai.NotFoundError):
            sdk.embeddings.create(model="other", input="x")


async def test_minilm_through_our_client(minilm: ServerProcess) -> None:
    """Health, usage and clock of the encoder through OpenAIHTTPBackend."""
    backend = OpenAIHTTPBackend("enc", [f"{minilm.url}/v1"])
    try:
        health = await backend.probe()
        assert (health.ready, health.context_tokens, len(health.model_revision)) == (True, 256, 16)
        asked = request("hello", model="minilm", encoding_format="base64")
        completion = await backend.generate(asked)
        raw = base64.b64decode(completion.body["data"][0]["embedding"])
        assert len(np.frombuffer(raw, dtype="<f4")) == 384
        assert completion.usage is not None
        assert completion.usage.headgate is not None
        assert completion.usage.headgate.machine_ns > 0
        clock = (await backend.clocks())[0]
        assert clock["busy_ns"] >= completion.usage.headgate.machine_ns
        assert clock["loading_ns"] > 0
    finally:
        await backend.aclose()


def test_bad_model_ends_with_its_name() -> None:
    """A folder that is not there can never start: exit code 2 and its name."""
    result = CliRunner().invoke(main, ["--model", "/nowhere"])
    assert result.exit_code == 2
    assert "/nowhere" in result.output


def test_chat_is_no_path_of_an_encoder(minilm: ServerProcess) -> None:
    """Only embeddings are served."""
    assert httpx.post(f"{minilm.url}/v1/chat/completions", json={}).status_code == 404


@pytest.mark.parametrize("ours_first", [True, False])
def test_our_kernels_package_does_not_confuse_transformers(ours_first: bool) -> None:
    """transformers probes for a Hugging Face package that is called `kernels` too: whichever is
    imported first, it must not take ours for that one."""
    lines = ["import kernels", "import sentence_transformers"]
    script = [
        *(lines if ours_first else reversed(lines)),
        "from transformers.utils.import_utils import is_kernels_available",
        "from transformers import BertModel, LlamaForCausalLM",
        "assert not is_kernels_available()",
        "from kernels import paged_attention",
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
