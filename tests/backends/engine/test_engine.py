"""The engine end to end on a toy model: answers, ends, usage, aborts."""

from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_engine import (
    EOS,
    LETTERS,
    LetterTokenizer,
    ToyRunner,
    greedy,
    plain_answer,
    run_all,
    text_of,
    tokens_of,
)

from backends.contract import SamplingParams, Usage
from backends.engine.config import EngineConfig, SpeculationConfig
from backends.engine.engine import Engine
from backends.engine.runner import SampleResult, SchedulerOutput
from backends.errors import ContextLengthError, InvalidRequestError
from backends.speculation.speculator import Speculator

PROMPT = [3, 1, 4, 1, 5, 9]


class Ticks:
    """A clock that moves on by another odd amount at each reading."""

    def __init__(self) -> None:
        self.ns = 0
        self.readings = count(1)

    def __call__(self) -> int:
        """Nanoseconds."""
        self.ns += 1000 + next(self.readings) * 7919 % 997
        return self.ns


def make_engine(method: str = "off", **fields: object) -> Engine:
    """An engine on the toy model."""
    settings: dict[str, object] = {
        "num_blocks": 64,
        "max_model_len": 128,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "kv_bytes_per_token": 1000,
        "speculation": SpeculationConfig(method=method),  # type: ignore[arg-type]
        **fields,
    }
    config = EngineConfig(**settings)  # type: ignore[arg-type]
    ticks = Ticks()
    return Engine(
        config,
        ToyRunner(config),
        LetterTokenizer(),
        speculator=Speculator.from_config(config.speculation, now_ns=ticks),
        now_ns=ticks,
        new_seed=count(1).__next__,
        started_ns=0,
    )


def usage_in(engine: Engine, *names: str) -> Usage:
    """Run to the end; the usage of one request (the only one, if unnamed)."""
    events = run_all(engine)
    name = names[0] if names else next(iter(events))
    usage = events[name][-1].usage
    assert usage is not None
    return usage


@pytest.mark.parametrize("method", ["off", "ngram", "auto"])
def test_engine_answers_as_the_model_does(method: str) -> None:
    """Several prompts at once, speculated or not, get what each would get alone."""
    engine = make_engine(method)
    prompts = {str(i): [1 + (i * 7 + j) % 22 for j in range(3 + 9 * i)] for i in range(6)}
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, greedy(40))
    events = run_all(engine)
    for name, prompt in prompts.items():
        assert tokens_of(events[name]) == plain_answer(prompt, 40)
    assert engine.scheduler.block_pool.num_used == 0


def test_engine_lookup_saves_steps() -> None:
    """On an answer that repeats itself, n-gram drafts are accepted: fewer steps, same tokens."""
    plain, guessing = make_engine(), make_engine("ngram")
    for engine in (plain, guessing):
        engine.add_request("r", PROMPT, greedy(100, ignore_eos=True))
    texts = [text_of(run_all(engine)["r"]) for engine in (plain, guessing)]
    assert texts[0] == texts[1]
    assert guessing.stats().steps < plain.stats().steps * 2 / 3
    assert guessing.stats().draft_accepted > 0


def test_engine_eos_ends_an_answer_and_is_no_text() -> None:
    """End-of-sequence is counted among the tokens, not shown, and has no stop_reason."""
    engine = make_engine()
    prompt = next(p for p in ([a, b] for a in range(1, 23) for b in range(1, 23)) if _ends_soon(p))
    engine.add_request("r", prompt, greedy(60))
    events = run_all(engine)["r"]
    tokens = tokens_of(events)
    assert tokens[-1] == EOS
    assert text_of(events) == "".join(LETTERS[t] for t in tokens[:-1])
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", None)


def test_engine_ignore_eos_generates_on() -> None:
    """With ignore_eos the answer has max_tokens tokens, whatever they are."""
    engine = make_engine()
    prompt = next(p for p in ([a, b] for a in range(1, 23) for b in range(1, 23)) if _ends_soon(p))
    engine.add_request("r", prompt, greedy(60, ignore_eos=True))
    events = run_all(engine)["r"]
    assert len(tokens_of(events)) == 60
    assert EOS in tokens_of(events)
    assert events[-1].finish_reason == "length"


def test_engine_stop_token_ends_an_answer_and_is_named() -> None:
    """A stop token id is the stop_reason; its text is not shown."""
    engine = make_engine()
    answer = plain_answer(PROMPT, 20, eos=None)
    engine.add_request("r", PROMPT, greedy(20, ignore_eos=True, stop_token_ids=(answer[5],)))
    events = run_all(engine)["r"]
    length = answer.index(answer[5]) + 1
    assert tokens_of(events) == answer[:length]
    assert text_of(events) == "".join(LETTERS[t] for t in answer[: length - 1])
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", answer[5])


def test_engine_min_tokens_holds_off_any_end() -> None:
    """Neither stop tokens nor stop strings end an answer before min_tokens."""
    answer = plain_answer(PROMPT, 60, eos=None)
    early = answer[1]
    for stop in ({"stop_token_ids": (early,)}, {"stop": (LETTERS[early],)}):
        engine = make_engine()
        engine.add_request("r", PROMPT, greedy(60, ignore_eos=True, min_tokens=10, **stop))
        tokens = tokens_of(run_all(engine)["r"])
        assert len(tokens) == next(i for i in range(10, 60) if answer[i] == early) + 1


@pytest.mark.parametrize("method", ["off", "ngram"])
def test_engine_stop_string_ends_an_answer_in_the_middle_of_a_step(method: str) -> None:
    """Tokens, text, logprobs and usage end with the token that completes the stop string, also
    when one step brought tokens beyond it."""
    letters = "".join(LETTERS[t] for t in plain_answer(PROMPT, 90, eos=None))
    stop = letters[60:64]
    engine = make_engine(method)
    engine.add_request("r", PROMPT, greedy(90, ignore_eos=True, stop=(stop,), logprobs=0))
    events = run_all(engine)["r"]
    end = letters.index(stop) + len(stop)
    assert text_of(events) == letters[: letters.index(stop)]
    assert len(tokens_of(events)) == end
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", stop)
    assert events[-1].usage is not None
    assert events[-1].usage.completion_tokens == end
    for event in events:
        assert [lp.token_id for lp in event.logprobs] == list(event.token_ids)


def test_engine_max_tokens_none_fills_the_context() -> None:
    """Without max_tokens the answer may take what the context leaves."""
    engine = make_engine(max_model_len=20)
    engine.add_request("r", PROMPT, greedy(None, ignore_eos=True))
    events = run_all(engine)["r"]
    assert len(tokens_of(events)) == 20 - len(PROMPT)
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "params", "error", "param"),
    [
        ([], greedy(), InvalidRequestError, "prompt"),
        ([1] * 128, greedy(None), ContextLengthError, "prompt"),
        ([1] * 120, greedy(9), ContextLengthError, "max_tokens"),
        ([1, 23], greedy(), InvalidRequestError, "prompt"),
        ([-1], greedy(), InvalidRequestError, "prompt"),
        ([1], SamplingParams(temperature=-1.0), InvalidRequestError, "temperature"),
    ],
)
def test_engine_refuses_at_once(
    prompt: list[int], params: SamplingParams, error: type[InvalidRequestError], param: str
) -> None:
    """What can never be answered is refused, names its field, and leaves nothing behind."""
    engine = make_engine()
    with pytest.raises(error) as caught:
        engine.add_request("r", prompt, params)
    assert caught.value.param == param
    assert not engine.has_unfinished
    engine.add_request("r", [1], greedy(1))


def test_engine_refuses_a_request_id_in_use() -> None:
    """Two running requests cannot have one id; after the first has ended they can."""
    engine = make_engine()
    engine.add_request("r", PROMPT, greedy(3))
    with pytest.raises(InvalidRequestError, match="'r' is in use"):
        engine.add_request("r", PROMPT, greedy(3))
    run_all(engine)
    engine.add_request("r", PROMPT, greedy(3))


def test_engine_n_choices_share_one_prompt_and_one_usage() -> None:
    """Each choice has its own seed and end; only the last event has the usage, prompt once."""
    engine = make_engine()
    prompt = list(range(1, 18))
    engine.add_request("r", prompt, greedy(7, n=3, ignore_eos=True, seed=11))
    seeds = {choice.seed for choice in engine._groups["r"].choices}
    assert len(seeds) == 3
    assert 11 in seeds
    events = run_all(engine)["r"]
    assert [tokens_of(events, i) for i in range(3)] == [plain_answer(prompt, 7, eos=None)] * 3
    assert [event.usage is not None for event in events] == [False] * (len(events) - 1) + [True]
    usage = events[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (17, 21, 0)


def test_engine_tells_usage_on_the_way_where_that_is_asked_for() -> None:
    """Every 16 tokens of a choice: what all of the request has used; it only grows to the end."""
    engine = make_engine("ngram")
    engine.add_request("told", PROMPT, greedy(70, n=2, ignore_eos=True), tells_usage=True)
    engine.add_request("not", PROMPT, greedy(70, ignore_eos=True))
    events = run_all(engine)
    assert all(event.accrued is None for event in events["not"])
    told = [event.accrued for event in events["told"] if event.accrued is not None]
    assert 6 <= len(told) <= 8
    last = events["told"][-1].usage
    assert last is not None
    for before, after in pairwise([*told, last]):
        assert before.completion_tokens <= after.completion_tokens
        assert before.headgate is not None
        assert after.headgate is not None
        assert 0 < before.headgate.billable_ns <= after.headgate.billable_ns
    assert not engine._telling


def test_engine_abort_frees_blocks_and_tells_what_was_used() -> None:
    """An aborted request holds nothing, gets no further event, and its usage is known."""
    engine = make_engine()
    engine.add_request("gone", PROMPT, greedy(50, n=2, ignore_eos=True))
    engine.add_request("stays", PROMPT, greedy(5, ignore_eos=True))
    for _ in range(4):
        engine.step()
    usage = engine.abort("gone")
    assert usage is not None
    assert usage.completion_tokens >= 6
    assert usage.headgate is not None
    assert usage.headgate.decode_ns > 0
    assert {r.request_id for r in engine.scheduler.running} == {"stays"}
    assert engine.abort("gone") is None
    assert set(run_all(engine)) == {"stays"}
    assert engine.scheduler.block_pool.num_used == 0


def test_engine_prediction_is_accepted_where_right() -> None:
    """A right prediction is counted as accepted and saves steps; a wrong one as rejected."""
    answer = plain_answer(PROMPT, 30, eos=None)
    right, wrong = make_engine("ngram"), make_engine("ngram")
    text = "".join(LETTERS[t] for t in answer)
    params = greedy(30, ignore_eos=True)
    right.add_request("r", PROMPT, params, prediction_text=text.replace("~", "a"))
    wrong.add_request("r", PROMPT, params, prediction_token_ids=[answer[0], 22, 22, 22])
    usages = [usage_in(right), usage_in(wrong)]
    assert usages[0].accepted_prediction_tokens > 10
    assert usages[1].accepted_prediction_tokens == 0
    assert usages[1].rejected_prediction_tokens == 3
    for usage in usages:
        assert usage.headgate is not None
        assert usage.completion_tokens == 30
        assert usage.headgate.draft_tokens >= usage.headgate.draft_accepted


@settings(max_examples=40, deadline=None)
@given(
    jobs=st.lists(
        st.tuples(st.integers(1, 30), st.integers(1, 20), st.integers(1, 3)),
        min_size=1,
        max_size=8,
    ),
    num_blocks=st.integers(16, 40),
    method=st.sampled_from(["off", "ngram", "auto"]),
    abort_at=st.integers(0, 30),
)
def test_engine_shares_of_all_requests_sum_to_the_busy_time(
    jobs: list[tuple[int, int, int]], num_blocks: int, method: str, abort_at: int
) -> None:
    """To the nanosecond, under preemption, speculation and aborts."""
    engine = make_engine(method, num_blocks=num_blocks, max_model_len=60)
    used: list[Usage] = []
    for name, (prompt_tokens, max_tokens, n) in enumerate(jobs):
        prompt = [1 + (name + j * j) % 22 for j in range(prompt_tokens)]
        engine.add_request(str(name), prompt, greedy(max_tokens, n=n, ignore_eos=True))
    for step in range(3000):
        if step == abort_at and (usage := engine.abort("0")) is not None:
            used.append(usage)
        used += [event.usage for event in engine.step() if event.usage is not None]
        if not engine.has_unfinished:
            break
    assert len(used) == len(jobs)
    measured = [usage.headgate for usage in used if usage.headgate is not None]
    clock = engine.clock()
    assert sum(usage.machine_ns for usage in measured) == clock.busy_ns
    recomputed = sum(usage.recompute_ns for usage in measured)
    assert (recomputed > 0) == (engine.stats().recomputed_tokens > 0)


def test_engine_recomputed_tokens_are_booked_as_such() -> None:
    """What a preemption costs is not called prefill."""
    engine = make_engine(num_blocks=8, max_model_len=32, enable_prefix_caching=False)
    for name in "abc":
        engine.add_request(name, PROMPT, greedy(20, ignore_eos=True))
    events = run_all(engine)
    assert engine.stats().preemptions > 0
    spent = {name: e[-1].usage.headgate for name, e in events.items() if e[-1].usage}
    assert spent["a"] is not None
    assert spent["a"].recompute_ns == 0
    assert sum(s.recompute_ns for s in spent.values() if s) > 0
    assert engine.stats().prompt_tokens == 3 * len(PROMPT)


def test_engine_clock_idle_and_busy_are_measured() -> None:
    """Time before the first request and after the last is idle; steps are busy; together with
    loading and the gaps between calls they make up the whole."""
    engine = make_engine()
    before = engine.clock()
    assert before.loading_ns > 0
    engine.add_request("r", PROMPT, greedy(5, ignore_eos=True))
    run_all(engine)
    after = engine.clock()
    assert after.idle_ns > before.idle_ns > 0
    assert after.busy_ns > 0
    assert after.loading_ns + after.idle_ns + after.busy_ns <= after.since_start_ns


def test_engine_kv_byte_seconds_grow_with_blocks_and_time() -> None:
    """A block of 4 tokens × 1000 bytes held for the busy time, at least one, at most all."""
    engine = make_engine(kv_bytes_per_token=10**9)
    engine.add_request("r", PROMPT, greedy(20, ignore_eos=True))
    usage = usage_in(engine)
    assert usage.headgate is not None
    busy_ns = usage.headgate.machine_ns
    block = 4 * 10**9
    assert 2 * block * busy_ns <= usage.headgate.kv_byte_seconds * 10**9 + 10**9
    assert usage.headgate.kv_byte_seconds * 10**9 <= 7 * block * busy_ns + 10**9


def test_engine_a_failed_step_takes_nothing_in() -> None:
    """When the runner raises, the requests can be stepped again as if nothing had happened."""

    class Failing(ToyRunner):
        failures = 2

        def execute(self, output: SchedulerOutput) -> list[SampleResult]:
            if self.steps == 3 and self.failures:
                self.failures -= 1
                raise RuntimeError("device lost")
            return super().execute(output)

    config = EngineConfig(num_blocks=32, max_model_len=64, block_size=4, max_num_seqs=4)
    engine = Engine(config, Failing(config), LetterTokenizer())
    engine.add_request("r", PROMPT, greedy(10, ignore_eos=True))
    failures, tokens = 0, []
    while engine.has_unfinished:
        try:
            tokens += [t for event in engine.step() for t in event.token_ids]
        except RuntimeError:
            failures += 1
    assert failures == 2
    assert tokens == plain_answer(PROMPT, 10, eos=None)


def test_engine_stats_count_what_happened() -> None:
    """Load and counts, while running and after."""
    engine = make_engine(max_num_seqs=1)
    prompt = list(range(1, 14))
    engine.add_request("a", prompt, greedy(4, ignore_eos=True))
    engine.add_request("b", prompt, greedy(4, ignore_eos=True))
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 1)
    assert stats.kv_usage_ratio == 4 / 64
    run_all(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_usage_ratio) == (0, 0, 0.0)
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (14, 12, 8)
    assert stats.prefix_cache_hit_tokens == 12


def _ends_soon(prompt: list[int]) -> bool:
    answer = plain_answer(prompt, 40)
    return 5 < len(answer) < 40


@pytest.mark.parametrize("method", ["off", "ngram"])
def test_engine_a_conversation_reuses_its_own_answer(method: str) -> None:
    """The next turn, prompt and answer so far plus a question, computes only what is new."""
    engine = make_engine(method)
    engine.add_request("first", PROMPT, greedy(40, ignore_eos=True))
    answer = tokens_of(run_all(engine)["first"])
    turn = [*PROMPT, *answer, 7, 8, 9]
    engine.add_request("second", turn, greedy(3, ignore_eos=True))
    usage = usage_in(engine, "second")
    # The answer's last token was never computed, and only full blocks are kept.
    assert usage.cached_tokens == (len(PROMPT) + 40 - 1) // 4 * 4
