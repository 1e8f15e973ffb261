"""What each step computes: continuous batching over a pool of KV blocks.

A step is filled in this order, under `max_num_batched_tokens`:
1. running sequences that decode, one token each;
2. running sequences whose prompt is not yet computed, in chunks;
3. waiting sequences, if there are seats and blocks;
4. drafts to verify, with whatever tokens and blocks are left.

Sequences are served by (priority, arrival). When blocks run out, the last of them in that order
gives up its blocks and is recomputed later, so the first one always progresses.
"""

from bisect import insort
from collections.abc import Sequence
from heapq import heappop, heappush
from operator import attrgetter

from backends.contract import FinishReason
from backends.engine.block_pool import BlockPool
from backends.engine.config import EngineConfig
from backends.engine.prefix_cache import PrefixCache
from backends.engine.request import Request, RequestStatus
from backends.engine.runner import SampleResult, ScheduledSequence, SchedulerOutput
from backends.errors import ContextLengthError, InvalidRequestError

__all__ = ["SampleResult", "ScheduledSequence", "Scheduler", "SchedulerOutput"]

_by_order = attrgetter("order")


class Scheduler:
    """Decides step by step; owns the queues and every sequence's blocks. Not thread-safe."""

    def __init__(
        self,
        config: EngineConfig,
        block_pool: BlockPool | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.config = config
        self.block_pool = block_pool or BlockPool(config.num_blocks)
        if prefix_cache is None and config.enable_prefix_caching:
            prefix_cache = PrefixCache(self.block_pool, config.block_size)
        self.prefix_cache = prefix_cache
        self.running: list[Request] = []
        """In order of service."""
        self.num_preemptions = 0
        self._waiting: list[tuple[tuple[int, float, int], Request]] = []
        self._requests: dict[str, list[Request]] = {}
        self._serial = 0
        self._num_waiting = 0
        # The step being put together.
        self._budget = 0
        self._scheduled: dict[Request, ScheduledSequence] = {}
        self._preempted: list[Request] = []

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return self._num_waiting

    @property
    def has_unfinished(self) -> bool:
        """Whether any sequence runs or waits."""
        return bool(self.running) or self._num_waiting > 0

    def add(self, request: Request) -> None:
        """Queue a sequence.

        Raises:
            InvalidRequestError: an empty prompt.
            ContextLengthError: it could never fit the context or the KV pool.
        """
        check_fits(self.config, request.num_prompt_tokens, request.max_tokens)
        self._serial += 1
        request.order = (request.priority, request.arrival, self._serial)
        self._requests.setdefault(request.request_id, []).append(request)
        self._queue(request)

    def abort(self, request_id: str) -> bool:
        """End all choices of a request and free their blocks now; False if none was unfinished."""
        requests = list(self._requests.get(request_id, ()))
        for request in requests:
            self.finish(request, "abort")
        return bool(requests)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """Take a sequence out, for whatever reason, and free its blocks."""
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self._num_waiting -= 1  # its queue entry is skipped later
        self._leave(request, RequestStatus.FINISHED)
        request.finish_reason = reason
        siblings = self._requests[request.request_id]
        siblings.remove(request)
        if not siblings:
            del self._requests[request.request_id]

    def schedule(self) -> SchedulerOutput:
        """Put the next step together; empty only if nothing is unfinished."""
        self._budget = self.config.max_num_batched_tokens
        self._scheduled = {}
        self._preempted = []
        prefilling = self._schedule_decodes()
        self._schedule_prefills(prefilling)
        self._admit()
        self._schedule_drafts()
        return SchedulerOutput(
            sequences=list(self._scheduled.values()),
            num_tokens=self.config.max_num_batched_tokens - self._budget,
            preempted=self._preempted,
        )

    def update(
        self, output: SchedulerOutput, results: Sequence[SampleResult]
    ) -> list[tuple[int, ...]]:
        """Take in what a step computed.

        Returns:
            For each scheduled sequence the tokens its answer grew by: those sampled, up to the
            first that ends it. Ended sequences have given back their blocks.
        """
        taken = []
        for part, result in zip(output.sequences, results, strict=True):
            request = part.request
            tokens = result.token_ids
            computed = part.start + part.num_tokens
            if part.samples:
                assert 1 <= len(tokens) <= part.num_drafts + 1, "a sampling sequence gets 1..d+1"
                # KV of rejected drafts is not valid: the next step starts over them.
                computed += len(tokens) - 1 - part.num_drafts
                tokens = request.append(tokens)
                if request.draft_token_ids:
                    request.draft_token_ids = []
            else:
                assert not tokens, "a sequence that does not sample gets no tokens"
            request.num_computed_tokens = computed
            if computed > request.max_computed_tokens:
                request.max_computed_tokens = computed
            if self.prefix_cache is not None and (
                computed // self.config.block_size > request.num_cached_blocks
            ):
                self.prefix_cache.offer(request)
            if request.finish_reason is not None:
                self.finish(request, request.finish_reason)
            taken.append(tokens)
        return taken

    def _schedule_decodes(self) -> list[Request]:
        """One token for each decoding sequence; returns the others that run."""
        running, scheduled = self.running, self._scheduled
        size = self.config.block_size
        prefilling = []
        place = 0
        while place < len(running):  # preemption shortens the list from its end
            request = running[place]
            place += 1
            start = request.num_computed_tokens
            if start != len(request.token_ids) - 1:
                prefilling.append(request)
            elif start < len(request.block_ids) * size or self._make_room(request, start + 1):
                scheduled[request] = ScheduledSequence(request, start, 1)
                self._budget -= 1
                if self.config.run_ahead and start + 1 >= len(request.block_ids) * size:
                    self._reserve_next(request)
        return prefilling

    def _reserve_next(self, request: Request) -> None:
        """Give a sequence the block of its next token a step early; nobody is preempted for it."""
        if request.num_remaining_tokens > 1 and self.block_pool.num_free:
            request.block_ids.extend(self.block_pool.allocate(1))

    def _schedule_prefills(self, requests: list[Request]) -> None:
        for request in requests:
            if self._budget <= 0:
                return
            if request.status is not RequestStatus.RUNNING:
                continue
            count = self._chunk(request)
            if count and self._make_room(request, request.num_computed_tokens + count):
                self._take(request, count)

    def _chunk(self, request: Request) -> int:
        """Tokens of the request's uncomputed part that this step has room for."""
        wanted = len(request.token_ids) - request.num_computed_tokens
        if wanted <= self._budget:
            return wanted
        return self._budget if self.config.enable_chunked_prefill else 0

    def _take(self, request: Request, count: int) -> None:
        self._scheduled[request] = ScheduledSequence(request, request.num_computed_tokens, count)
        self._budget -= count

    def _make_room(self, request: Request, end: int) -> bool:
        """Blocks for tokens [0, end), preempting from the back of the order if needed.

        False if the request itself was the last and had to give way.
        """
        missing = self._blocks_for(end) - len(request.block_ids)
        if missing <= 0:
            return True
        while missing > self.block_pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        request.block_ids.extend(self.block_pool.allocate(missing))
        return True

    def _preempt(self, victim: Request) -> None:
        assert victim is self.running[-1]
        self.running.pop()
        part = self._scheduled.pop(victim, None)
        if part is not None:
            self._budget += part.num_tokens
        self._leave(victim, RequestStatus.WAITING)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        self._preempted.append(victim)
        self._queue(victim)

    def _admit(self) -> None:
        """Start waiting sequences in order; the first without room stops those behind it.

        After a preemption nobody is: blocks are scarce, and they would be the next to go.
        """
        held_back: list[Request] = []
        while self._num_waiting and self._budget > 0 and not self._preempted:
            request = self._waiting[0][1]
            if request.status is not RequestStatus.WAITING:
                heappop(self._waiting)  # it ended while it waited
            elif _waits_for_leader(request):
                held_back.append(self._unqueue())
            elif not self._start(request):
                break
        for request in held_back:
            self._queue(request)
        if not self._num_waiting:
            self._waiting.clear()  # only entries of ended requests are left

    def _start(self, request: Request) -> bool:
        """Admit the first in the queue and schedule its first chunk, if there is room for it."""
        if not self._has_seat() and not self._gives_way_to(request):
            return False
        cached = self.prefix_cache.match(request) if self.prefix_cache is not None else []
        computed = len(cached) * self.config.block_size
        uncached = len(request.token_ids) - computed
        if uncached > self._budget and not self.config.enable_chunked_prefill:
            return False
        if not self._find_room(request, cached):
            return False
        self._unqueue()
        request.status = RequestStatus.RUNNING
        insort(self.running, request, key=_by_order)
        self.block_pool.share(cached)
        request.block_ids = cached
        request.num_cached_blocks = len(cached)
        request.num_computed_tokens = computed
        if self.prefix_cache is not None:
            self.prefix_cache.count_query(request, len(cached))
        if not request.admitted:
            request.admitted = True
            request.cached_tokens = computed
        count = min(uncached, self._budget)
        missing = self._blocks_for(computed + count) - len(cached)
        request.block_ids.extend(self.block_pool.allocate(missing))
        self._take(request, count)
        return True

    def _find_room(self, request: Request, cached: list[int]) -> bool:
        """Whether there is a seat, and blocks for all that is known of a waiting request.

        One spare block per running sequence is left for their next tokens, lest the new one be
        preempted at once. A better priority (not a mere earlier arrival) takes the place of
        running sequences.
        """
        known = self._blocks_for(len(request.token_ids))
        while True:
            # Cached blocks that nobody holds count as free until they are shared.
            held = sum(1 for block in cached if self.block_pool.references(block))
            spare = self._blocks_promised() + len(self.running)
            if self._has_seat() and known - held + spare <= self.block_pool.num_free:
                return True
            if not self._gives_way_to(request):
                return False
            self._preempt(self.running[-1])

    def _has_seat(self) -> bool:
        return len(self.running) < self.config.max_num_seqs

    def _gives_way_to(self, request: Request) -> bool:
        """Whether the last of the running has a worse priority than a waiting request."""
        return bool(self.running) and self.running[-1].priority > request.priority

    def _blocks_promised(self) -> int:
        """Blocks that running sequences still need for what is already known of them."""
        return sum(
            max(0, self._blocks_for(len(request.token_ids)) - len(request.block_ids))
            for request in self.running
        )

    def _schedule_drafts(self) -> None:
        """Add drafts where tokens and free blocks are left; nobody is preempted for a guess."""
        pool, size = self.block_pool, self.config.block_size
        for part in self._scheduled.values():
            request = part.request
            if not request.draft_token_ids:
                continue
            end = part.start + part.num_tokens
            slots = (len(request.block_ids) + pool.num_free) * size - end
            room = min(
                len(request.draft_token_ids),
                self._budget,
                slots,
                request.num_remaining_tokens - 1,
            )
            if room <= 0 or not part.samples:
                request.draft_token_ids = []
                continue
            del request.draft_token_ids[room:]
            missing = self._blocks_for(end + room) - len(request.block_ids)
            if missing > 0:
                request.block_ids.extend(pool.allocate(missing))
            part.num_tokens += room
            part.num_drafts = room
            self._budget -= room

    def _queue(self, request: Request) -> None:
        heappush(self._waiting, (request.order, request))
        self._num_waiting += 1

    def _unqueue(self) -> Request:
        self._num_waiting -= 1
        return heappop(self._waiting)[1]

    def _leave(self, request: Request, status: RequestStatus) -> None:
        """Give back all the request holds."""
        self.block_pool.release(request.block_ids)
        request.block_ids = []
        request.num_cached_blocks = 0
        request.num_computed_tokens = 0
        request.draft_token_ids = []
        request.status = status

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)


def check_fits(config: EngineConfig, prompt_tokens: int, max_tokens: int) -> None:
    """Refuse what could never run.

    Raises:
        InvalidRequestError: an empty prompt.
        ContextLengthError: prompt and answer exceed the context or the KV pool.
    """
    if prompt_tokens < 1:
        raise InvalidRequestError("The prompt has no tokens; send at least one.", param="prompt")
    most = config.longest_sequence
    where = (
        f"this model's context is {most} tokens"
        if most == config.max_model_len
        else f"the KV cache holds {most} tokens"
    )
    if prompt_tokens >= most:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens, but {where}, of which at least one is for "
            "the answer; shorten the prompt.",
            param="prompt",
        )
    if prompt_tokens + max_tokens > most:
        raise ContextLengthError(
            f"The prompt has {prompt_tokens} tokens and max_tokens is {max_tokens}, but {where}; "
            f"shorten the prompt or ask for at most {most - prompt_tokens} tokens.",
            param="max_tokens",
        )


def _waits_for_leader(request: Request) -> bool:
    """Whether the first choice of the same prompt is still computing the KV to be shared."""
    leader = request.leader
    if leader is None or leader.is_finished:
        return False
    return leader.num_computed_tokens < leader.num_prompt_tokens
