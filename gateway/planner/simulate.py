"""One replica on a virtual clock: our own scheduler, fed by a load, timed by a step model.

The scheduler is the engine's, so chunked prefill, admission and preemption behave as they will.
Tokens are made up; a prefix that the load marks as cached counts as computed.
"""

from collections import deque
from collections.abc import Sequence

from msgspec import Struct

from backends.contract import SamplingParams
from backends.engine.config import EngineConfig
from backends.engine.request import Request
from backends.engine.runner import SampleResult
from backends.engine.scheduler import Scheduler
from gateway.planner.steps import StepModel
from gateway.planner.workload import Arrival, percentile

_TOKEN = 7
_ONE = SampleResult((_TOKEN,))
_NONE = SampleResult(())


class Simulated(Struct, frozen=True, kw_only=True):
    """What a replica did under a load."""

    requests: int
    finished: int
    seconds: float
    """Virtual, until the last answer."""
    busy_s: float
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
    limit_s: float | None = None,
) -> Simulated:
    """Run a load through one replica.

    Args:
        load: in order of arrival.
        tokens_per_step: a decoding sequence gains on average (speculation: more than 1).
        limit_s: give up at this virtual time: the replica cannot keep up.
    """
    scheduler = Scheduler(config)
    waiting = deque(load)
    progress: dict[str, _Progress] = {}
    done: list[_Progress] = []
    now = busy = 0.0
    steps = batch = peak = prompt_tokens = 0
    while (waiting or scheduler.has_unfinished) and (limit_s is None or now < limit_s):
        if not scheduler.has_unfinished:
            now = max(now, waiting[0].at_s)
        while waiting and waiting[0].at_s <= now:
            arrival = waiting.popleft()
            name = str(len(progress))
            progress[name] = _Progress(arrival.at_s)
            prompt_tokens += arrival.prompt_tokens
            scheduler.add(_request(name, arrival, config, tokens_per_step))
        output = scheduler.schedule()
        sequences = output.sequences
        kv_tokens = sum(part.start + part.num_tokens for part in sequences)
        took = step.seconds(output.num_tokens, len(sequences), kv_tokens)
        now += took
        busy += took
        steps += 1
        batch += len(sequences)
        peak = max(peak, kv_tokens)
        sampled = [part.samples for part in sequences]
        scheduler.update(output, [_ONE if one else _NONE for one in sampled])
        for part, samples in zip(sequences, sampled, strict=True):
            if not samples:
                continue
            its = progress[part.request.request_id]
            its.tokens += 1
            its.last_s = now
            if its.tokens == 1:
                its.first_s = now
            if part.request.is_finished:
                done.append(its)
    ttft = [its.first_s - its.arrived_s for its in progress.values() if its.tokens]
    tpot = [
        (its.last_s - its.first_s) / (its.tokens - 1) / tokens_per_step
        for its in done
        if its.tokens > 1
    ]
    made = sum(its.tokens for its in progress.values()) * tokens_per_step
    return Simulated(
        requests=len(load),
        finished=len(done),
        seconds=now,
        busy_s=busy,
        output_tokens_per_s=made / now if now else 0.0,
        tokens_per_s=(made + prompt_tokens) / now if now else 0.0,
        mean_batch=batch / steps if steps else 0.0,
        peak_kv_tokens=peak,
        preemptions=scheduler.num_preemptions,
        ttft_p50_s=percentile(ttft, 0.5),
        ttft_p99_s=percentile(ttft, 0.99),
        tpot_p50_s=percentile(tpot, 0.5),
        tpot_p99_s=percentile(tpot, 0.99),
    )


def _request(name: str, arrival: Arrival, config: EngineConfig, tokens_per_step: float) -> Request:
    """The scheduler's request; a cached prefix is simply not computed again."""
    room = config.longest_sequence
    prompt = max(1, min(arrival.prompt_tokens - arrival.cached_tokens, room - 1))
    steps = max(1, round(arrival.output_tokens / tokens_per_step))
    most = max(1, min(steps, room - prompt))
    return Request(
        request_id=name,
        prompt_token_ids=[_TOKEN] * prompt,
        params=SamplingParams(max_tokens=most, ignore_eos=True),
        max_tokens=most,
        arrival=arrival.at_s,
    )
