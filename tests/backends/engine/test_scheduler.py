"""The scheduler under any traffic: right answers, limits kept, nobody starved."""

from itertools import combinations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from toy_engine import EOS, ToyRunner, greedy, next_token, plain_answer

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig
from backends.engine.request import Request, RequestStatus
from backends.engine.runner import SchedulerOutput
from backends.engine.scheduler import Scheduler
from backends.errors import ContextLengthError, InvalidRequestError

PROMPT = list(range(1, 23))


def small_config(**fields: object) -> EngineConfig:
    """A tiny engine."""
    settings: dict[str, object] = {
        "num_blocks": 16,
        "max_model_len": 64,
        "block_size": 4,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        **fields,
    }
    return EngineConfig(**settings)  # type: ignore[arg-type]


class Bench:
    """A scheduler with the toy runner."""

    def __init__(self, **fields: object) -> None:
        self.config = small_config(**fields)
        self.scheduler = Scheduler(self.config)
        self.runner = ToyRunner(self.config)

    def add(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int = 8,
        *,
        priority: int = 0,
        params: SamplingParams | None = None,
    ) -> Request:
        """Queue one sequence."""
        request = Request(
            request_id=name,
            prompt_token_ids=prompt,
            params=params or greedy(max_tokens),
            max_tokens=max_tokens,
            priority=priority,
            eos_token_ids=frozenset({EOS}),
        )
        self.scheduler.add(request)
        return request

    def step(self) -> SchedulerOutput:
        """Schedule, compute, update."""
        output = self.scheduler.schedule()
        self.scheduler.update(output, self.runner.execute(output))
        return output

    def run(self) -> None:
        """Until nothing is left."""
        for _ in range(5000):
            if not self.scheduler.has_unfinished:
                return
            self.step()
        raise AssertionError("requests still unfinished after 5000 steps")


def test_scheduler_decodes_come_before_prompts() -> None:
    """A long prompt is chunked around running answers, which get a token in every step."""
    bench = Bench()
    short = bench.add("short", PROMPT[:3], 12, params=greedy(12, ignore_eos=True))
    bench.step()
    bench.add("long", PROMPT * 2, 4)
    for step in range(2):
        output = bench.step()
        assert [part.request.request_id for part in output.sequences] == ["short", "long"]
        assert output.sequences[0].num_tokens == 1
        assert output.sequences[1].num_tokens == 15
        assert len(short.output_token_ids) == step + 2


def test_scheduler_without_chunked_prefill_computes_prompts_whole() -> None:
    """A prompt that does not fit beside the answers waits for a step that has room."""
    bench = Bench(enable_chunked_prefill=False, max_num_batched_tokens=64, num_blocks=64)
    for name in "abc":
        bench.add(name, PROMPT, 6)
    bench.add("d", PROMPT[1:], 6)
    for _ in range(200):
        if not bench.scheduler.has_unfinished:
            break
        for part in bench.step().sequences:
            whole = part.request.num_prompt_tokens
            assert part.start >= whole or part.start % 4 == 0
            assert part.num_tokens == 1 or part.start + part.num_tokens >= whole
    assert not bench.scheduler.has_unfinished


def test_scheduler_serves_better_priorities_first() -> None:
    """Of the waiting the lowest priority number is admitted first, then the earliest."""
    bench = Bench(max_num_seqs=1)
    order: list[str] = []
    for name, priority in (("c", 5), ("d", 5), ("b", 0), ("a", -1)):
        bench.add(name, PROMPT[:4], 3, priority=priority)
    while bench.scheduler.has_unfinished:
        name = bench.step().sequences[0].request.request_id
        if name not in order:
            order.append(name)
    assert order == ["a", "b", "c", "d"]


def test_scheduler_better_priority_takes_a_running_place() -> None:
    """An urgent request does not wait for the answers of less urgent ones to end."""
    bench = Bench(max_num_seqs=2)
    params = greedy(20, ignore_eos=True)
    slow = [bench.add(n, PROMPT[:4], 20, priority=9, params=params) for n in "xy"]
    bench.step()
    bench.add("urgent", PROMPT[:5], 2)
    output = bench.step()
    assert [r.request_id for r in output.preempted] == ["y"]
    assert "urgent" in {part.request.request_id for part in output.sequences}
    bench.run()
    for request in slow:
        assert request.output_token_ids == plain_answer(PROMPT[:4], 20, eos=None)


def test_scheduler_same_priority_never_takes_a_running_place() -> None:
    """A later arrival of the same priority waits."""
    bench = Bench(max_num_seqs=1)
    bench.add("first", PROMPT[:4], 6)
    bench.step()
    bench.add("second", PROMPT[:4], 6)
    assert bench.step().preempted == []
    assert bench.scheduler.num_waiting == 1


def test_scheduler_preempts_the_newest_when_blocks_run_out() -> None:
    """The oldest goes on; the newest is recomputed and still answers right."""
    bench = Bench(num_blocks=8, enable_prefix_caching=False)
    params = greedy(20, ignore_eos=True)
    requests = [bench.add(str(i), PROMPT[i : i + 4], 20, params=params) for i in range(3)]
    bench.run()
    assert requests[0].num_preemptions == 0
    assert bench.scheduler.num_preemptions > 0
    for i, request in enumerate(requests):
        assert request.output_token_ids == plain_answer(PROMPT[i : i + 4], 20, eos=None)


def test_scheduler_drops_drafts_before_it_preempts() -> None:
    """Guesses never take a block that somebody needs."""
    bench = Bench(num_blocks=4, max_num_seqs=2, enable_prefix_caching=False)
    params = greedy(8, ignore_eos=True)
    first = bench.add("a", PROMPT[:4], 4, params=params)
    second = bench.add("b", PROMPT[4:8], 4, params=params)
    bench.step()
    assert bench.scheduler.block_pool.num_free == 2
    first.draft_token_ids, second.draft_token_ids = [5, 5, 5], [6, 6, 6]
    output = bench.step()
    assert output.preempted == []
    assert [part.num_drafts for part in output.sequences] == [2, 2]


def test_scheduler_drafts_never_exceed_what_may_be_generated() -> None:
    """With two tokens to go, one draft can matter."""
    bench = Bench()
    request = bench.add("a", PROMPT[:4], 3, params=greedy(3, ignore_eos=True))
    bench.step()
    request.draft_token_ids = [1, 2, 3, 4]
    assert [part.num_drafts for part in bench.step().sequences] == [1]


def test_scheduler_abort_frees_all_blocks_at_once() -> None:
    """Running and waiting choices of an aborted request hold nothing before the next step."""
    bench = Bench(max_num_seqs=1)
    bench.add("gone", PROMPT[:9], 8)
    bench.add("gone", PROMPT[:9], 8)
    bench.add("stays", PROMPT[:2], 2)
    bench.step()
    assert bench.scheduler.abort("gone")
    assert bench.scheduler.block_pool.num_used == 0
    assert bench.scheduler.num_waiting == 1
    assert not bench.scheduler.abort("gone")
    bench.run()
    assert bench.scheduler.block_pool.num_used == 0


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "param"),
    [(64, 1, "prompt"), (90, 1, "prompt"), (60, 5, "max_tokens")],
)
def test_scheduler_refuses_what_exceeds_the_context(
    prompt_tokens: int, max_tokens: int, param: str
) -> None:
    """A sequence that can never fit is refused at once, naming what to change."""
    with pytest.raises(ContextLengthError, match="64 tokens") as caught:
        Bench(num_blocks=64).add("r", [1] * prompt_tokens, max_tokens)
    assert caught.value.param == param


def test_scheduler_refuses_what_exceeds_the_pool() -> None:
    """So is one that fits the context but not the KV pool; at the limit it runs."""
    bench = Bench(num_blocks=8)
    with pytest.raises(ContextLengthError, match="KV cache holds 32 tokens"):
        bench.add("r", PROMPT, 11)
    request = bench.add("r", PROMPT, 10, params=greedy(10, ignore_eos=True))
    bench.run()
    assert request.output_token_ids == plain_answer(PROMPT, 10, eos=None)


def test_scheduler_refuses_an_empty_prompt() -> None:
    """Without a token there is nothing to continue."""
    with pytest.raises(InvalidRequestError, match="no tokens"):
        Bench().add("r", [], 4)


def test_scheduler_reuses_the_prompt_of_an_earlier_request() -> None:
    """The second request computes only what the first did not."""
    bench = Bench()
    bench.add("a", PROMPT[:14], 2)
    bench.run()
    second = bench.add("b", PROMPT[:14], 2)
    part = bench.step().sequences[0]
    assert (part.start, part.num_tokens) == (12, 2)
    assert second.cached_tokens == 12
    assert second.output_token_ids == plain_answer(PROMPT[:14], 1)


def test_scheduler_choices_of_one_prompt_share_its_blocks() -> None:
    """The other choices wait one prefill and then hold the first one's blocks."""
    bench = Bench()
    leader = bench.add("r", PROMPT[:13], 8, params=greedy(8, ignore_eos=True))
    other = Request(
        request_id="r",
        prompt_token_ids=PROMPT[:13],
        params=greedy(8, ignore_eos=True),
        max_tokens=8,
        index=1,
        leader=leader,
    )
    bench.scheduler.add(other)
    assert [part.request for part in bench.step().sequences] == [leader]
    bench.step()
    assert other.block_ids[:3] == leader.block_ids[:3]
    assert other.cached_tokens == 12
    bench.run()
    assert other.output_token_ids == leader.output_token_ids


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, aborts, drafts and limits, on a pool that is often too small."""

    @initialize(
        num_blocks=st.integers(5, 14),
        max_num_seqs=st.integers(1, 5),
        extra_budget=st.integers(0, 12),
        caching=st.booleans(),
        chunked=st.booleans(),
    )
    def start(
        self, num_blocks: int, max_num_seqs: int, extra_budget: int, caching: bool, chunked: bool
    ) -> None:
        """A fresh scheduler."""
        self.bench = Bench(
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_model_len=40,
            max_num_batched_tokens=max_num_seqs + extra_budget + (0 if chunked else 40),
            enable_prefix_caching=caching,
            enable_chunked_prefill=chunked,
        )
        self.scheduler = self.bench.scheduler
        self.requests: list[Request] = []
        self.aborted: set[str] = set()

    @rule(
        shared=st.integers(0, 12),
        own=st.lists(st.integers(1, 22), min_size=1, max_size=12),
        max_tokens=st.integers(1, 14),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        ignore_eos=st.booleans(),
        choices=st.sampled_from([1, 1, 1, 3]),
    )
    def add(
        self,
        shared: int,
        own: list[int],
        max_tokens: int,
        priority: int,
        ignore_eos: bool,
        choices: int,
    ) -> None:
        """A request arrives, often with a beginning that others have; it may be refused."""
        name = str(len(self.requests))
        params = greedy(max_tokens, ignore_eos=ignore_eos)
        leader: Request | None = None
        for index in range(choices):
            request = Request(
                request_id=name,
                prompt_token_ids=PROMPT[:shared] + own,
                params=params,
                max_tokens=max_tokens,
                index=index,
                priority=priority,
                eos_token_ids=frozenset({EOS}),
                leader=leader,
            )
            fits = shared + len(own) + max_tokens <= self.bench.config.longest_sequence
            try:
                self.scheduler.add(request)
            except ContextLengthError:
                assert not fits
                return
            assert fits
            self.requests.append(request)
            leader = leader or request

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """Somebody goes away; their blocks are free before the next step."""
        request = data.draw(st.sampled_from(self.requests))
        known = any(r.request_id == request.request_id and not r.is_finished for r in self.requests)
        assert self.scheduler.abort(request.request_id) == known
        if known:
            self.aborted.add(request.request_id)
        assert not request.block_ids

    @rule(data=st.data(), steps=st.integers(1, 4))
    def step(self, data: st.DataObject, steps: int) -> None:
        """Some steps, with right and wrong drafts thrown in."""
        for _ in range(steps):
            if not self.scheduler.has_unfinished:
                return
            for request in self.scheduler.running:
                if request.is_decoding:
                    right = data.draw(st.integers(0, 3))
                    wrong = data.draw(st.lists(st.integers(0, 22), max_size=2))
                    request.draft_token_ids = _continuation(request.token_ids, right) + wrong
            self._step()

    def _step(self) -> None:
        before = {r: len(r.output_token_ids) for r in self.requests}
        first = self.scheduler.running[0] if self.scheduler.running else None
        output = self.bench.step()
        assert output.sequences
        scheduled = {part.request for part in output.sequences}
        assert len(scheduled) == len(output.sequences)
        assert not scheduled & set(output.preempted)
        # The first in order always progresses, unless a better priority took its place.
        assert first is None or first in scheduled or first in output.preempted
        if first in output.preempted:
            assert any(part.request.priority < first.priority for part in output.sequences)
        for request, count in before.items():
            grown = len(request.output_token_ids) - count
            assert (grown > 0) <= (request in scheduled)

    @invariant()
    def blocks_add_up(self) -> None:
        """Every block is free or held; a sequence holds enough; only equal prefixes are shared."""
        if not hasattr(self, "bench"):
            return
        pool, size = self.scheduler.block_pool, self.bench.config.block_size
        holders: dict[int, list[tuple[Request, int]]] = {}
        for request in self.requests:
            if request.status is not RequestStatus.RUNNING:
                assert not request.block_ids
            assert len(request.block_ids) * size >= request.num_computed_tokens
            assert len(set(request.block_ids)) == len(request.block_ids)
            for place, block_id in enumerate(request.block_ids):
                holders.setdefault(block_id, []).append((request, place))
        assert pool.num_used == len(holders)
        for block_id in range(pool.num_blocks):
            assert pool.references(block_id) == len(holders.get(block_id, ()))
        for shared in holders.values():
            for (one, place), (other, other_place) in combinations(shared, 2):
                end = (place + 1) * size
                assert place == other_place
                assert one.token_ids[:end] == other.token_ids[:end]
                assert min(one.num_computed_tokens, other.num_computed_tokens) >= end

    @invariant()
    def queues_add_up(self) -> None:
        """Every unfinished sequence runs or waits, the running ones in order."""
        if not hasattr(self, "bench"):
            return
        running = [r for r in self.requests if r.status is RequestStatus.RUNNING]
        waiting = [r for r in self.requests if r.status is RequestStatus.WAITING]
        assert sorted(running, key=lambda r: r.order) == self.scheduler.running
        assert len(waiting) == self.scheduler.num_waiting

    def teardown(self) -> None:
        """All that is left finishes, with the answers that the model gives one by one."""
        if not hasattr(self, "bench"):
            return
        for _ in range(3000):
            if not self.scheduler.has_unfinished:
                break
            self._step()
        assert not self.scheduler.has_unfinished
        assert self.scheduler.block_pool.num_used == 0
        for request in self.requests:
            eos = None if request.params.ignore_eos else EOS
            answer = plain_answer(request.prompt_token_ids, request.max_tokens, eos=eos)
            if request.request_id in self.aborted:
                assert request.output_token_ids == answer[: len(request.output_token_ids)]
            else:
                assert request.output_token_ids == answer
                assert request.finish_reason == ("stop" if answer[-1] == eos else "length")


def _continuation(tokens: list[int], count: int) -> list[int]:
    """What the toy model will say next."""
    tokens = list(tokens)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(tokens) - count :]


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
