"""One replica on a virtual clock: our own scheduler, fed by a load, timed by a step model.

The scheduler is the engine's, so chunked prefill, admission and preemption behave as they will.
Tokens are made up; a prefix that the load marks as cached counts as computed. Between two events
(an arrival, an end, a shortage of blocks) all steps of a batch decode the same sequences: those are
taken in one leap, which gives the sequences the tokens and blocks that the steps would have given.
"""

from collections import deque
from collections.abc import Sequence
from math import ceil

from msgspec import Struct

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig
from backends.engine.request import Request
from backends.engine.runner import SampleResult, SchedulerOutput
from backends.engine.scheduler import Scheduler
from gateway.planner.steps import StepModel, Work
from gateway.planner.workload import Arrival, percentile

_TOKEN = 7
_ONE = SampleResult((_TOKEN,))
_NONE = SampleResult(())
_PARAMS = SamplingParams(ignore_eos=True)


class Simulated(Struct, frozen=True, kw_only=True):
    """What a replica did under a load."""

    requests: int
    finished: int
    seconds: float
    """Virtual, from the first arrival until the last answer."""
    busy_s: float
    requests_per_s: float
    output_tokens_per_s: float
    tokens_per_s: float
    """Prompt and output."""
    mean_batch: float
    """Sequences per step."""
    peak_kv_tokens: int
    preemptions: int
    ttft_p50_s: float
    ttft_p99_s: float
    tpot_p50_s: float
    tpot_p99_s: float

    @property
    def busy_share(self) -> float:
        return self.busy_s / self.seconds if self.seconds else 0.0


class _Progress:
    """One request's times."""

    __slots__ = ("arrived_s", "first_s", "last_s", "tokens")

    def __init__(self, arrived_s: float) -> None:
        self.arrived_s = arrived_s
        self.first_s = self.last_s = 0.0
        self.tokens = 0


def simulate(
    load: Sequence[Arrival],
    step: StepModel,
    config: EngineConfig,
    *,
    tokens_per_step: float = 1.0,
    step_factor: float = 1.0,
    limit_s: float | None = None,
    concurrency: int | None = None,
) -> Simulated:
    """Run a load through one replica.

    Args:
        load: in order of arrival.
        tokens_per_step: a decoding sequence gains on average (speculation: more than 1).
        step_factor: how much longer a step takes for that.
        limit_s: give up at this virtual time: the replica cannot keep up.
        concurrency: instead of their moments, so many requests are under way at any time, until
            `limit_s`; the load is repeated, and what is under way then still ends.
    """
    assert load, "an empty load has no times"
    replica = _Replica(step, config, tokens_per_step, step_factor)
    if concurrency is None:
        _open_loop(replica, load, limit_s)
    else:
        assert limit_s is not None, "a closed loop needs an end"
        _closed_loop(replica, load, concurrency, limit_s)
    return replica.result(tokens_per_step)


def _open_loop(replica: "_Replica", load: Sequence[Arrival], limit_s: float | None) -> None:
    for arrival in load:
        replica.send(arrival, arrival.at_s)
    while replica.unfinished and (limit_s is None or replica.now < limit_s):
        replica.advance()


def _closed_loop(
    replica: "_Replica", load: Sequence[Arrival], concurrency: int, limit_s: float
) -> None:
    added = 0
    while True:
        while replica.unfinished < concurrency and replica.now < limit_s:
            replica.send(load[added % len(load)], replica.now)
            added += 1
        if not replica.unfinished:
            return
        replica.advance()


class _Replica:
    """The scheduler, its clock, and what became of each request."""

    def __init__(
        self, step: StepModel, config: EngineConfig, tokens_per_step: float, step_factor: float
    ) -> None:
        self.now = 0.0
        self._step = step
        self._config = config
        self._tokens_per_step = tokens_per_step
        self._step_factor = step_factor
        self._scheduler = Scheduler(config)
        self._progress: dict[Request, _Progress] = {}
        self._done: list[_Progress] = []
        self._begun = 0.0
        """Answers whose first token came in the last step: the next one pays for them."""
        self._repeats = False
        """Whether the next step would decode what the last one did, if nothing happened."""
        self._began: float | None = None
        self._received_s = 0.0
        self._coming: deque[tuple[float, Request]] = deque()
        """Requests that the engine does not know of yet, and when it will."""
        self._busy = 0.0
        self._steps = self._batch = self._peak = self._prompt_tokens = self._added = 0

    @property
    def unfinished(self) -> int:
        """Requests under way, or still to come."""
        return len(self._progress)

    def send(self, arrival: Arrival, at_s: float) -> None:
        """A request, later than those before; a cached prefix is simply not computed again."""
        room = self._config.longest_sequence
        prompt = max(1, min(arrival.prompt_tokens - arrival.cached_tokens, room - 1))
        steps = max(1, round(arrival.output_tokens / self._tokens_per_step))
        most = max(1, min(steps, room - prompt))
        request = Request(
            request_id=str(self._added),
            prompt_token_ids=[_TOKEN] * prompt,
            params=_PARAMS,
            max_tokens=most,
            arrival=at_s,
        )
        if self._began is None:
            self._began = at_s
        self._added += 1
        self._prompt_tokens += arrival.prompt_tokens
        self._progress[request] = _Progress(at_s)
        self._received_s = max(self._received_s, at_s) + self._step.request_s
        self._coming.append((self._received_s, request))

    def advance(self) -> None:
        """The steps that only repeat the last one, up to the next event, and the step after."""
        scheduler, progress = self._scheduler, self._progress
        if not scheduler.has_unfinished and self._coming[0][0] > self.now:
            self.now, self._begun = self._coming[0][0], 0
        if not self._receive() and self._repeats:
            self._leap()
            self._receive()
        output = scheduler.schedule()
        work, kv_tokens, results = _work_of(output)
        self._take(work._replace(prompts=self._begun), kv_tokens, len(output.sequences))
        self._begun = results.count(_ONE) - work.decode_tokens
        scheduler.update(output, results)
        ended = False
        for part in output.sequences:
            request = part.request
            if request.finish_reason is None and len(request.output_token_ids) != 1:
                continue
            its = progress[request]
            its.first_s = its.first_s or self.now
            if request.finish_reason is not None:
                ended = True
                its.last_s, its.tokens = self.now, len(request.output_token_ids)
                self._done.append(progress.pop(request))
        decoded_only = work.prefill_tokens == 0 and not ended
        self._repeats = decoded_only or not scheduler.num_waiting

    def _receive(self) -> bool:
        """Hand the scheduler what has come; whether anything has."""
        coming, before = self._coming, len(self._coming)
        while coming and coming[0][0] <= self.now:
            self._scheduler.add(coming.popleft()[1])
        return len(coming) < before

    def _leap(self) -> None:
        """Take the steps in which the same sequences decode, all but the one that ends one."""
        running, pool = self._scheduler.running, self._scheduler.block_pool
        batch, size = len(running), self._config.block_size
        count, attended = self._config.longest_sequence, batch
        for request in running:
            computed, left = request.num_computed_tokens, request.num_remaining_tokens
            if computed != len(request.token_ids) - 1:
                return  # of a prompt some is left
            attended += computed
            count = left if left < count else count
        count = count - 1 if running else 0
        if self._coming and count > 0:
            count = self._steps_until(self._coming[0][0], batch, attended, count)
        missing = [
            -(-(request.num_computed_tokens + count) // size) - len(request.block_ids)
            for request in running
        ]
        if count < 1 or sum(more for more in missing if more > 0) > pool.num_free:
            return  # blocks run out on the way: step by step
        made = [_TOKEN] * count
        for request, more in zip(running, missing, strict=True):
            if more > 0:
                request.block_ids.extend(pool.allocate(more))
            request.token_ids.extend(made)
            request.output_token_ids.extend(made)
            request.num_computed_tokens += count
        self._take(self._decoding(count, batch, attended), attended + batch * (count - 1), batch)
        self._begun = 0

    def _decoding(self, steps: int, batch: int, attended: int) -> Work:
        """So many steps of a batch, of which the first reads `attended` tokens."""
        total = steps * attended + batch * steps * (steps - 1) / 2
        return Work(steps, batch * steps, total, prompts=self._begun)

    def _seconds(self, work: Work) -> float:
        return self._step_factor * self._step.seconds(work)

    def _steps_until(self, next_s: float, batch: int, attended: int, most: int) -> int:
        """The fewest decoding steps that reach an arrival; they grow longer with what they read."""
        wait_s = next_s - self.now
        if wait_s <= 0:
            return 0
        count = min(most, ceil(wait_s / self._seconds(self._decoding(1, batch, attended))))
        took_s = self._seconds(self._decoding(count, batch, attended))
        if took_s > wait_s:
            count = max(1, ceil(count * wait_s / took_s))
        while count < most and self._seconds(self._decoding(count, batch, attended)) < wait_s:
            count += 1
        while count > 1 and self._seconds(self._decoding(count - 1, batch, attended)) >= wait_s:
            count -= 1
        return count

    def _take(self, work: Work, kv_tokens: int, batch: int) -> None:
        took = self._seconds(work)
        self.now += took
        self._busy += took
        steps = round(work.steps)
        self._steps += steps
        self._batch += batch * steps
        self._peak = max(self._peak, kv_tokens)

    def result(self, tokens_per_step: float) -> Simulated:
        """What is known at the end."""
        ttft = [its.first_s - its.arrived_s for its in self._done]
        ttft += [its.first_s - its.arrived_s for its in self._progress.values() if its.first_s]
        tpot = [
            (its.last_s - its.first_s) / (its.tokens - 1) / tokens_per_step
            for its in self._done
            if its.tokens > 1
        ]
        made = sum(its.tokens for its in self._done)
        made += sum(len(request.output_token_ids) for request in self._progress)
        seconds = self.now - (self._began or 0.0)
        rate = 1.0 / seconds if seconds > 0 else 0.0
        return Simulated(
            requests=self._added,
            finished=len(self._done),
            seconds=seconds,
            busy_s=self._busy,
            requests_per_s=len(self._done) * rate,
            output_tokens_per_s=made * tokens_per_step * rate,
            tokens_per_s=(made * tokens_per_step + self._prompt_tokens) * rate,
            mean_batch=self._batch / self._steps if self._steps else 0.0,
            peak_kv_tokens=self._peak,
            preemptions=self._scheduler.num_preemptions,
            ttft_p50_s=percentile(ttft, 0.5),
            ttft_p99_s=percentile(ttft, 0.99),
            tpot_p50_s=percentile(tpot, 0.5),
            tpot_p99_s=percentile(tpot, 0.99),
        )


def _work_of(output: SchedulerOutput) -> tuple[Work, int, list[SampleResult]]:
    """What a step computes, how many tokens its attention reads, and what each sequence gets."""
    decoded = attended = prefilled = looked_back = kv_tokens = 0
    results = []
    for part in output.sequences:
        count = part.num_tokens
        end = part.start + count
        kv_tokens += end
        if count == 1 and part.start >= part.request.num_prompt_tokens:
            decoded += 1
            attended += end
            results.append(_ONE)
        else:
            prefilled += count
            looked_back += count * part.start + count * (count + 1) // 2
            results.append(_ONE if part.samples else _NONE)
    return Work(1.0, decoded, attended, prefilled, looked_back), kv_tokens, results
