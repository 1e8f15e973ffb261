"""Recorded decode steps that run ahead answer as plain ones do, on any device.

Here a recording is the step itself, run again: the buffers, buckets, padding rows and guesses are
those of a GPU. The recording itself is tested where there is one (`make test-gpu`).
"""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tiny_tokenizers import save_folder

from backends.contract import SamplingParams, StructuredOutputsParams
from backends.engine.config import EngineConfig, SpeculationConfig
from backends.engine.decode_graphs import (
    CudaCapture,
    DecodeGraphs,
    DecodeRow,
    Step,
    context_tiers,
    row_buckets,
)
from backends.engine.engine import Engine
from backends.engine.graph_runner import GraphModelRunner
from backends.engine.input_batch import BlockTables
from backends.engine.kv_cache import allocate
from backends.engine.model_runner import ModelRunner
from backends.engine.request import Request
from backends.engine.runner import SampleResult
from backends.engine.scheduler import Scheduler
from backends.models.adapters import Adapter
from backends.models.registry import Model, load_model
from backends.sampling.grammar import GrammarCompiler
from backends.sampling.sampler import Sampler
from backends.sampling.state import SamplingState
from backends.speculation.speculator import Speculator
from backends.tokenizer import Tokenizer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def folder(make_checkpoint: Callable[..., Path]) -> Path:
    """Return a random Llama with a byte-level tokenizer."""
    return save_folder(make_checkpoint(seed=5))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    """Return it loaded."""
    return load_model(folder, device=DEVICE, dtype=torch.float32)


class Recorder:
    """Records steps and counts their replays."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replays = 0
        self._capture = CudaCapture() if DEVICE.type == "cuda" else lambda step: step

    def __call__(self, step: Step) -> Step:
        self.recorded += 1
        replay = self._capture(step)

        def counted() -> None:
            self.replays += 1
            replay()

        return counted


def _config(**changes: Any) -> EngineConfig:
    values = {"num_blocks": 80, "max_model_len": 64, "block_size": 4, "max_num_seqs": 6, **changes}
    return EngineConfig(run_ahead=True, **values)


def _engines(
    model: Model, folder: Path, config: EngineConfig
) -> tuple[Engine, Engine, GraphModelRunner, Recorder]:
    """An engine without graphs, which draws as the other does, and one with them."""
    tokenizer, recorder = Tokenizer.from_folder(folder), Recorder()
    options: dict[str, Any] = {"device": DEVICE, "kv_dtype": torch.float32}
    plain = ModelRunner(model, config, **options)
    plain._sampler = Sampler(on_device=True)  # as on a GPU, and as graphs draw
    graphs = GraphModelRunner(model, config, capture=recorder, **options)
    return Engine(config, plain, tokenizer), Engine(config, graphs, tokenizer), graphs, recorder


def _params(index: int, chance: random.Random) -> SamplingParams:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": index},
        {"temperature": 0.9, "top_p": 0.8, "seed": index},
        {"temperature": 1.3, "top_k": 12, "min_p": 0.01, "seed": index},
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.8, "presence_penalty": 0.7, "seed": index},
        {"temperature": 0.7, "seed": index, "stop": ["e"]},
        {"temperature": 0.0, "repetition_penalty": 1.4, "frequency_penalty": 0.3},
        {"temperature": 0.9, "seed": index, "min_tokens": 6},
        {"temperature": 0.0, "logit_bias": {50: 4.0, 60: -9.0}},
    ]
    return SamplingParams(
        **kinds[index % len(kinds)],
        max_tokens=chance.randrange(1, 30),
        ignore_eos=index % 5 == 0,
    )


def _answers(engine: Engine, waves: list[list[int]]) -> dict[str, list[int]]:
    """Answer requests of all kinds; a wave is added every third step, and one is aborted."""
    chance = random.Random(3)
    prompts = {
        index: [chance.randrange(6, 200) for _ in range(chance.randrange(1, 25))]
        for wave in waves
        for index in wave
    }
    params = {index: _params(index, chance) for index in prompts}
    answers: dict[str, list[int]] = {}
    steps = 0
    while waves or engine.has_unfinished:
        if waves and steps % 3 == 0:
            for index in waves[0]:
                engine.add_request(str(index), prompts[index], params[index])
            waves = waves[1:]
        if steps == 8:
            engine.abort("3")
        for event in engine.step():
            answers.setdefault(event.request_id, []).extend(event.token_ids)
        steps += 1
    return answers


@pytest.mark.parametrize("num_blocks", [80, 17], ids=["roomy", "preempting"])
def test_graph_runner_answers_as_the_plain_runner_does(
    model: Model, folder: Path, num_blocks: int
) -> None:
    """Requests of every kind, coming and going, preempted and aborted, get the same tokens."""
    plain, graphed, _, recorder = _engines(model, folder, _config(num_blocks=num_blocks))
    waves = [[0, 1, 2], [3, 4, 5, 6], [], [7, 8, 9, 10, 11], [12, 13]]
    expected = _answers(plain, waves)
    assert _answers(graphed, waves) == expected
    assert len(expected) == 14
    assert recorder.replays > 20
    assert (plain.stats().preemptions > 0) == (num_blocks == 17)


def test_graphs_apply_penalties_while_running_ahead(model: Model, folder: Path) -> None:
    """A penalised answer is decoded by replays alone, and no token of it is counted twice."""
    plain, graphed, _, recorder = _engines(model, folder, _config())
    params = SamplingParams(
        temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.5, max_tokens=25,
        ignore_eos=True,
    )  # fmt: skip
    answers = []
    for engine in (plain, graphed):
        tokens: dict[str, list[int]] = {"a": [], "b": [], "late": []}
        for name, prompt in (("a", [7, 8, 9]), ("b", [30, 31])):
            engine.add_request(name, prompt, params)
        for step in range(60):
            if step == 9:  # Its prompt makes a step that was launched ahead vain.
                engine.add_request("late", [9, 9, 50], params)
            for event in engine.step():
                tokens[event.request_id] += event.token_ids
        answers.append(tokens)
    assert answers[0] == answers[1]
    assert recorder.replays >= 9 + 24, "of the first two until the third comes, then of it"


class Teacher:
    """Guesses from the known answers: some right, some followed by a wrong one, some not at all."""

    def __init__(self, answers: dict[str, list[int]]) -> None:
        self._answers = answers
        self._turn = 0

    def propose(self, requests: list[Request]) -> None:
        for place, request in enumerate(requests, start=self._turn):
            done = len(request.output_token_ids)
            right = self._answers[request.request_id][done : done + 2]
            request.draft_token_ids = [[], right, [*right, 7], [5]][place % 4]
        self._turn += 1

    def step_took(self, *_: object) -> None: ...

    def verified(self, *_: object) -> None: ...

    def forget(self, *_: object) -> None: ...


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_graphs_verify_guesses(model: Model, folder: Path, temperature: float) -> None:
    """Guesses of some sequences beside plain decodes of others: the plain tokens, by replays."""
    config = _config(speculation=SpeculationConfig(method="ngram", num_tokens=3))
    plain, graphed, _, recorder = _engines(model, folder, config)
    answers: list[dict[str, list[int]]] = []
    for engine in (plain, graphed):
        tokens: dict[str, list[int]] = {"a": [], "b": [], "c": []}
        for index, name in enumerate(tokens):
            params = SamplingParams(
                temperature=temperature, seed=index, max_tokens=20, ignore_eos=True
            )
            engine.add_request(name, [7, 8, 9, 10 + index], params)
        if engine is graphed:
            engine._speculator = cast(Speculator, Teacher(answers[0]))
        while engine.has_unfinished:
            for event in engine.step():
                tokens[event.request_id] += event.token_ids
        answers.append(tokens)
    stats = graphed.stats()
    assert answers[0] == answers[1]
    assert 0 < stats.draft_accepted < stats.draft_tokens
    assert recorder.replays == stats.steps - 1, "all but the prompts"


def test_graph_runner_is_always_one_step_ahead(model: Model, folder: Path) -> None:
    """While nobody comes or goes, each step is one replay, started a step before."""
    _, engine, runner, recorder = _engines(model, folder, _config())
    for name in ("a", "b", "c"):
        params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
        engine.add_request(name, [7, 8, 9], params)
    engine.step()  # the prompts
    before = recorder.replays
    for step in range(1, 15):
        engine.step()
        assert runner._ahead is not None
        assert recorder.replays - before == step + 1
    while engine.has_unfinished:
        engine.step()
    assert recorder.replays - before == 19, "the last step of all is not run ahead of"


def test_graph_runner_uses_what_it_guessed_when_a_sequence_ends(model: Model, folder: Path) -> None:
    """The others' rows of a step that was started early stay good: nothing is computed twice."""
    _, engine, _, recorder = _engines(model, folder, _config())
    for name, count in (("short", 4), ("long", 9)):
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        engine.add_request(name, [7, 8, 9], params)
    engine.step()
    before = recorder.replays
    engine.step()
    ended = engine.abort("short")
    assert ended is not None
    while engine.has_unfinished:
        engine.step()
    assert recorder.replays - before == 8


def _graphs(model: Model, config: EngineConfig) -> tuple[DecodeGraphs, list[Any], BlockTables]:
    caches = allocate(model.config, num_blocks=8, block_size=4, dtype=torch.float32, device=DEVICE)
    tables = BlockTables(rows=6, columns=17)
    graphs = DecodeGraphs(
        model, caches, tables, max_rows=config.max_num_seqs, block_size=4,
        max_model_len=config.max_model_len, device=DEVICE, capture=Recorder(),
    )  # fmt: skip
    return graphs, caches, tables


def test_answers_join_the_recordings_once_they_may_end(model: Model, folder: Path) -> None:
    """Ends are ruled out beside the recordings until `min_tokens` are out; the rest is replays."""
    config = _config(enable_prefix_caching=False)
    plain, engine, _, recorder = _engines(model, folder, config)
    answers = []
    for each in (plain, engine):
        params = SamplingParams(temperature=1.0, seed=4, min_tokens=8, max_tokens=20)
        each.add_request("a", [7, 8, 9], params)
        tokens: list[int] = []
        while each.has_unfinished:
            tokens += [token for event in each.step() for token in event.token_ids]
        answers.append(tokens)
    assert answers[0] == answers[1]
    assert len(answers[0]) > 8
    assert recorder.replays >= len(answers[0]) - 8


def test_padding_rows_do_no_harm(model: Model) -> None:
    """Rows that fill a bucket write to no slot and read none, whatever the step before left."""
    graphs, caches, _ = _graphs(model, _config())
    requests = []
    for index in range(5):
        request = Request(str(index), [9 + index], SamplingParams(temperature=0.0), 10)
        request.block_ids = [index]
        requests.append(request)
    states = [SamplingState(r.params, r.prompt_token_ids, seed=1) for r in requests]
    alone = []
    for request, state in zip(requests, states, strict=True):
        alone += graphs.launch([DecodeRow(request, 0)], [state]).tokens()
    for cache in caches:
        for half in cache[:2]:
            half.fill_(torch.nan)
    graphs.launch([DecodeRow(r, 0) for r in requests], states).tokens()  # fills the bucket of 6
    together = graphs.launch([DecodeRow(r, 0) for r in requests[:3]], states[:3]).tokens()
    assert together == alone[:3]
    for cache in caches:
        for half in cache[:2]:
            written = ~half.isnan().all(dim=-1).all(dim=-1)
            assert written.nonzero().tolist() == [[index, 0] for index in range(5)]


def test_a_row_takes_the_token_that_the_launch_before_sampled(model: Model) -> None:
    """Its token need not be known to the host, nor stand in the same row."""
    graphs, _, _ = _graphs(model, _config())
    requests = [Request(str(i), [30 + i], SamplingParams(temperature=0.0), 10) for i in range(2)]
    for index, request in enumerate(requests):
        request.block_ids = [index]
    states = [SamplingState(r.params, r.prompt_token_ids, seed=1) for r in requests]
    first = graphs.launch([DecodeRow(r, 0) for r in requests], states)
    second = graphs.launch([DecodeRow(requests[1], 1, source=1)], states[1:])
    sampled = first.tokens()
    requests[1].append((sampled[1],))
    known = graphs.launch([DecodeRow(requests[1], 1)], states[1:])
    assert second.tokens() == known.tokens()


def test_shapes_are_recorded_once_and_beforehand_where_asked(model: Model, folder: Path) -> None:
    """After `prepare` no step records anything."""
    _, engine, runner, recorder = _engines(model, folder, _config())
    runner.graphs.prepare()
    shapes = recorder.recorded
    graphs = runner.graphs
    assert shapes == len(graphs.buckets) * len(graphs.tiers) * len(graphs.queries)
    engine.add_request("a", [7, 8], SamplingParams(temperature=0.0, max_tokens=9))
    while engine.has_unfinished:
        engine.step()
    assert recorder.recorded == shapes


@pytest.mark.parametrize("rows", [1, 3, 8, 9, 64, 100, 256])
def test_row_buckets_waste_little(rows: int) -> None:
    """They rise to the largest batch, and a batch fills more than half of its bucket."""
    buckets = row_buckets(rows)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == rows
    for batch in range(1, rows + 1):
        assert next(size for size in buckets if size >= batch) < 2 * batch


@pytest.mark.parametrize(("length", "block"), [(100, 16), (1024, 16), (5000, 7), (131072, 16)])
def test_context_tiers_are_whole_blocks_and_hold_every_length(length: int, block: int) -> None:
    """The last tier has room for the longest sequence, and for at most a block more."""
    tiers = context_tiers(length, block)
    assert tiers == sorted(set(tiers))
    assert all(tier % block == 0 for tier in tiers)
    assert length <= tiers[-1] < length + block


@pytest.mark.parametrize(("num_blocks", "held"), [(4, [2, 2]), (3, [2, 1])])
def test_scheduler_reserves_the_next_block_without_preempting(
    num_blocks: int, held: list[int]
) -> None:
    """Running ahead, a sequence holds its next token's slot early if a block is free, else not."""
    config = _config(num_blocks=num_blocks, max_model_len=12, enable_prefix_caching=False)
    scheduler = Scheduler(config)
    requests = [Request(name, [1, 2, 3], SamplingParams(), 9) for name in "ab"]
    for request in requests:
        scheduler.add(request)
    output = scheduler.schedule()
    scheduler.update(output, [SampleResult((9,)) for _ in output.sequences])
    assert not scheduler.schedule().preempted
    assert [len(request.block_ids) for request in requests] == held


def test_sequences_with_an_adapter_go_beside_the_recordings(folder: Path) -> None:
    """A batch of some with and some without answers as plain steps do; the latter are replayed."""
    adapted = load_model(folder, device=DEVICE, dtype=torch.float32)
    weights = {(0, "q_proj"): (torch.ones(2, 64), torch.ones(64, 2))}
    adapted.adapt([Adapter("a", 1.0, weights)])
    config, tokenizer, recorder = _config(), Tokenizer.from_folder(folder), Recorder()
    options: dict[str, Any] = {"device": DEVICE, "kv_dtype": torch.float32}
    runners = [
        ModelRunner(adapted, config, **options),
        GraphModelRunner(adapted, config, capture=recorder, **options),
    ]
    answers = []
    for runner in runners:
        engine = Engine(config, runner, tokenizer, adapters=["a"])
        params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
        for index in range(4):
            adapter = "a" if index % 2 else None
            engine.add_request(str(index), [7, 8, 9], params, adapter=adapter)
        found: dict[str, list[int]] = {str(index): [] for index in range(4)}
        while engine.has_unfinished:
            for event in engine.step():
                found[event.request_id] += event.token_ids
        answers.append(found)
    assert answers[0] == answers[1]
    assert answers[0]["0"] == answers[0]["2"] != answers[0]["1"]
    assert recorder.replays


def test_answers_under_a_grammar_go_beside_the_recordings(model: Model, folder: Path) -> None:
    """They keep to it, greedy or drawn, and their neighbours are replayed as if they were alone."""
    form = StructuredOutputsParams(regex="(ab|cd){3,6}")
    plain, graphs, _, recorder = _engines(model, folder, _config())
    compiler = GrammarCompiler(Tokenizer.from_folder(folder))
    answers = []
    for engine in (plain, graphs):
        found: dict[str, str] = {}
        for index in range(6):
            wanted = form if index % 2 else None
            params = SamplingParams(
                temperature=index / 4, seed=1, max_tokens=20, structured_outputs=wanted
            )
            grammar = compiler.compile(form) if wanted else None
            engine.add_request(str(index), [7, 8, 9 + index // 2], params, grammar=grammar)
        while engine.has_unfinished:
            for event in engine.step():
                found[event.request_id] = found.get(event.request_id, "") + event.text
        answers.append(found)
    assert answers[0] == answers[1]
    assert all(re.fullmatch("(ab|cd){3,6}", answers[0][str(index)]) for index in (1, 3, 5))
    assert recorder.replays
