"""`deterministic = true`: a request's answer has the same bits whatever else is in the batch."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_tokenizers import save_folder

from backends.contract import SamplingParams, TokenEvent
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.options import read_options
from kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")

Answer = list[tuple[int, float, tuple[tuple[int, float], ...]]]
REQUESTS = 12


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """Return a random Llama with a byte-level tokenizer."""
    return save_folder(make_checkpoint(seed=5))


def _engine(folder: Path, **options: Any) -> Engine:
    return build_engine(
        read_options({"model": str(folder), "deterministic": True, "threads": 2, **options})
    )


def _requests() -> list[tuple[list[int], SamplingParams]]:
    """Prompts of 1 to 60 tokens, some that begin alike; greedy and drawing, with log-probs."""
    chance = random.Random(1)
    shared = [chance.randrange(6, 200) for _ in range(40)]
    requests = []
    for index in range(REQUESTS):
        own = [chance.randrange(6, 200) for _ in range(chance.randrange(1, 20))]
        params = SamplingParams(
            temperature=0.0 if index % 3 else 0.9,
            top_p=0.9,
            seed=index,
            max_tokens=chance.randrange(4, 16),
            ignore_eos=True,
            logprobs=3,
        )
        requests.append((shared + own if index % 2 else own, params))
    return requests


def _run(engine: Engine, waves: list[list[int]]) -> dict[int, Answer]:
    """Answer the requests; a wave is added every second step."""
    requests = _requests()
    answers: dict[int, Answer] = {index: [] for wave in waves for index in wave}
    left = list(waves)
    while left or engine.has_unfinished:
        if left:
            for index in left.pop(0):
                engine.add_request(str(index), *requests[index])
        for _ in range(2):
            for event in engine.step():
                _take(answers[int(event.request_id)], event)
    return answers


def _take(answer: Answer, event: TokenEvent) -> None:
    answer += [(entry.token_id, entry.logprob, entry.top) for entry in event.logprobs]


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_deterministic_answers_do_not_depend_on_the_batch(
    folder: Path, quantization: str | None, seed: int
) -> None:
    """Bit for bit, in random company: prompts in parts, reused prefixes, guesses verified."""
    alone_engine = _engine(folder, quantization=quantization, speculation={"method": "off"})
    alone = {i: answer for i in range(REQUESTS) for answer in [_run(alone_engine, [[i]])[i]]}
    chance = random.Random(seed)
    order = chance.sample(range(REQUESTS), REQUESTS)
    waves = []
    while order:
        size = chance.randrange(1, 6)
        waves.append(order[:size])
        order = order[size:]
    company = _engine(
        folder,
        quantization=quantization,
        max_num_seqs=8,
        max_num_batched_tokens=chance.choice([9, 24, 200]),
        speculation={"method": chance.choice(["off", "ngram"])},
    )
    assert _run(company, waves) == alone


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_deterministic_holds_over_smaller_caches(folder: Path, dtype: str) -> None:
    """Keys are rounded one by one, so company changes nothing there either."""
    engine = _engine(folder, kv_cache_dtype=dtype)
    assert _run(engine, [[3, 4, 5]]) == _run(_engine(folder, kv_cache_dtype=dtype), [[3], [4], [5]])


def test_deterministic_is_refused_where_it_cannot_be_promised(folder: Path) -> None:
    """Products that depend on the number of rows are an error at start, not a surprise later."""
    with pytest.raises(ValueError, match="deterministic is true, but"):
        _engine(folder, dtype="bfloat16")


def test_fp32_answers_are_the_same_bits_without_asking(folder: Path) -> None:
    """On a CPU that is told to compute in fp32 the option changes nothing but the promise."""
    plain = build_engine(read_options({"model": str(folder), "threads": 2, "dtype": "float32"}))
    assert _run(plain, [[3, 4, 5]]) == _run(_engine(folder), [[3], [4], [5]])
    assert torch.get_num_threads() == 2
