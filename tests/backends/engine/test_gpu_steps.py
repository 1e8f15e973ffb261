"""Decode steps on a real GPU: recorded, and in the steady state never waited for but by events."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_tokenizers import save_folder

from backends.contract import SamplingParams
from backends.engine.engine import Engine
from backends.engine.factory import build_engine
from backends.engine.graph_runner import GraphModelRunner
from backends.engine.options import read_options
from kernels import invariance

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """Return a random Llama with a byte-level tokenizer."""
    return save_folder(make_checkpoint(seed=5))


@pytest.fixture
def engine(folder: Path) -> Engine:
    """Return an engine as the factory builds it for a GPU, in bf16."""
    options = {"model": str(folder), "device": "cuda", "max_num_seqs": 8, "num_blocks": 64}
    return build_engine(read_options(options))


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """Make every call that waits for the GPU, other than for an event, an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def _decode(engine: Engine, count: int, tokens: int = 30) -> None:
    for index in range(count):
        params = SamplingParams(
            temperature=0.8 * (index % 2), top_p=0.9, seed=index, max_tokens=tokens, ignore_eos=True
        )
        engine.add_request(str(index), [7, 8, 9 + index], params)


@pytest.mark.usefixtures("_no_waiting")
def test_steady_decode_never_synchronises(engine: Engine) -> None:
    """Once everyone decodes, no step makes the host wait for the device's queue to drain."""
    _decode(engine, 5)
    for _ in range(3):
        engine.step()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(20):
        engine.step()
    torch.cuda.set_sync_debug_mode("default")
    while engine.has_unfinished:
        engine.step()


def test_factory_records_every_shape_before_serving(engine: Engine) -> None:
    """The first request of a GPU engine waits for no recording."""
    runner = engine.runner
    assert isinstance(runner, GraphModelRunner)
    graphs = runner.graphs
    shapes = len(graphs.buckets) * len(graphs.tiers) * len(graphs.queries)
    assert len(graphs._replays) == shapes
    assert engine.config.run_ahead


def test_steady_decode_allocates_nothing(engine: Engine) -> None:
    """Steps live in the memory that the graphs were recorded with."""
    _decode(engine, 4)
    for _ in range(4):
        engine.step()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        engine.step()
    assert torch.cuda.memory_allocated() == before


def test_deterministic_answers_do_not_depend_on_the_batch(folder: Path) -> None:
    """On a GPU too: the same tokens alone, and in company that comes and goes."""
    options = {"model": str(folder), "device": "cuda", "max_num_seqs": 8, "num_blocks": 64}
    engine = build_engine(read_options({**options, "deterministic": True}))
    try:
        alone = [_answers(engine, [index])[index] for index in range(6)]
        together = _answers(engine, list(range(6)))
    finally:
        invariance.forget()
    assert [together[index] for index in range(6)] == alone


def _answers(engine: Engine, indices: list[int]) -> dict[int, list[tuple[int, float]]]:
    """Tokens and their log-probabilities of prompts of several lengths, one joining each step."""
    answers: dict[int, list[tuple[int, float]]] = {index: [] for index in indices}
    left = list(indices)
    while left or engine.has_unfinished:
        if left:
            index = left.pop(0)
            params = SamplingParams(
                temperature=0.5 * (index % 2), seed=index, max_tokens=12, ignore_eos=True,
                logprobs=1,
            )  # fmt: skip
            engine.add_request(str(index), [7 + index] * (1 + 9 * index), params)
        for event in engine.step():
            taken = [(entry.token_id, entry.logprob) for entry in event.logprobs]
            answers[int(event.request_id)] += taken
    return answers
