"""Where the engine's time went: each step's time shared among its sequences, idle measured."""

from collections.abc import Callable, Sequence
from dataclasses import fields

from msgspec import Struct

from backends.contract import EngineUsage, Usage
from backends.engine.request import Request, Spent
from backends.engine.runner import ScheduledSequence
from backends.engine.step_costs import StepCosts, StepWork
from backends.meter import MeterSlot
from backends.shares import share

_NS_PER_S = 1_000_000_000


class EngineClock(Struct, frozen=True, kw_only=True):
    """Nanoseconds since the engine's start, each kind measured by itself."""

    since_start_ns: int
    loading_ns: int
    """From the start until the engine could take requests."""
    busy_ns: int
    """Of the machine's time: shared among requests so far."""
    idle_ns: int
    """Without any request to work on."""


class Stopwatch:
    """Measures loading and idle intervals from their own stamps, and the time there is to share.

    With a meter, that is this process's share of its machine's time; without, it is all of the
    time during which there were requests.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        started_ns: int | None = None,
        meter: MeterSlot | None = None,
    ) -> None:
        ready = now_ns()
        self._now_ns = now_ns
        self._started_ns = ready if started_ns is None else started_ns
        self._loading_ns = ready - self._started_ns
        self._idle_ns = 0
        self._idle_since: int | None = ready
        self._taken_until = ready
        self._meter = meter
        if meter is not None:
            meter.take(ends=True)
        self.busy_ns = 0

    def work_begins(self) -> None:
        """There is a request to work on."""
        if self._idle_since is not None:
            self._taken_until = self._now_ns()
            self._idle_ns += self._taken_until - self._idle_since
            self._idle_since = None
            if self._meter is not None:
                self._meter.begin()

    def take(self, *, ends: bool = False) -> tuple[int, int]:
        """What was worked since the last call; with `ends` there is no request any more.

        Returns:
            (nanoseconds of the machine, to be shared now; nanoseconds that passed)
        """
        if self._idle_since is not None:
            return 0, 0
        now = self._now_ns()
        passed_ns = now - self._taken_until
        worked_ns = passed_ns if self._meter is None else self._meter.take(ends=ends)
        self._taken_until = now
        self.busy_ns += worked_ns
        if ends:
            self._idle_since = now
        return worked_ns, passed_ns

    def report(self, ns: int) -> None:
        """So much of what was taken has been told to whoever pays for it."""
        if self._meter is not None:
            self._meter.report(ns)

    def lose(self, ns: int) -> None:
        """So much of what was taken brought nobody anything."""
        if self._meter is not None:
            self._meter.lose(ns)

    def read(self) -> EngineClock:
        """The totals up to now."""
        now = self._now_ns()
        waiting = 0 if self._idle_since is None else now - self._idle_since
        return EngineClock(
            since_start_ns=now - self._started_ns,
            loading_ns=self._loading_ns,
            busy_ns=self.busy_ns,
            idle_ns=self._idle_ns + waiting,
        )


class StepBill:
    """One step's time, shared by the work that each sequence caused (see `step_costs`).

    Make it before the scheduler learns the results (until then blocks are held, and recomputed
    tokens are those below what was computed before); `verified` for those with drafts; then
    `charge` once.
    """

    def __init__(
        self, running: Sequence[Request], scheduled: Sequence[ScheduledSequence], costs: StepCosts
    ) -> None:
        self._holders = [(request.spent, len(request.block_ids)) for request in running]
        self._costs = costs
        self._owners: list[tuple[Spent, str]] = []
        self._weights: list[int] = []
        self.work = StepWork()
        self.prompt_tokens = 0
        self.recomputed_tokens = 0
        self.draft_tokens = 0
        self.draft_accepted = 0
        self._enter_all(scheduled)

    @property
    def is_empty(self) -> bool:
        """Nothing was computed."""
        return not self._weights

    @property
    def decodes_only(self) -> bool:
        """No part of a prompt was computed, none was recomputed."""
        return self.prompt_tokens == 0 and self.recomputed_tokens == 0

    def _enter_all(self, scheduled: Sequence[ScheduledSequence]) -> None:
        """Count the known tokens of every sequence; nearly all are one token of an answer."""
        costs = self._costs
        token_weight = costs.fixed_weight + costs.decode_weight + 1
        attend_weight = costs.decode_attend_weight
        decoded = attended = 0
        for part in scheduled:
            request, start = part.request, part.start
            is_answer = start >= request.num_prompt_tokens and start >= request.max_computed_tokens
            if is_answer and part.num_tokens == part.num_drafts + 1:
                decoded += 1
                attended += start + 1
                self._owners.append((request.spent, "decode_ns"))
                self._weights.append(token_weight + (start + 1) * attend_weight)
            else:
                self._enter(part)
        self.work.decode_tokens += decoded
        self.work.decode_attended += attended

    def _enter(self, part: ScheduledSequence) -> None:
        """Count one sequence's: prompt, answer, recomputed."""
        request, start, costs = part.request, part.start, self._costs
        end = start + part.num_tokens - part.num_drafts
        fixed = costs.fixed_weight
        again = min(end, request.max_computed_tokens)
        if again > start:
            self._add(request.spent, "recompute_ns", start, again, fixed)
            self.recomputed_tokens += again - start
            start, fixed = again, 0
        prompt_end = min(end, request.num_prompt_tokens)
        if prompt_end > start:
            self._add(request.spent, "prefill_ns", start, prompt_end, fixed)
            self.prompt_tokens += prompt_end - start
            start, fixed = prompt_end, 0
        if end > start:
            self._add(request.spent, "decode_ns", start, end, fixed)

    def verified(self, part: ScheduledSequence, accepted: int, guess_weight: int) -> None:
        """Count a sequence's drafts: an accepted one was decoding, a rejected one speculation.

        Args:
            guess_weight: of guessing one of them, as `weight_of`.
        """
        spent, rejected = part.request.spent, part.num_drafts - accepted
        spent.draft_tokens += part.num_drafts
        spent.draft_accepted += accepted
        self.draft_tokens += part.num_drafts
        self.draft_accepted += accepted
        end = part.start + part.num_tokens
        if accepted:
            start = end - part.num_drafts
            self._add(spent, "decode_ns", start, start + accepted, accepted * guess_weight)
        if rejected:
            self._add(spent, "speculation_ns", end - rejected, end, rejected * guess_weight)

    def charge(self, total_ns: int, passed_ns: int, block_bytes: int) -> None:
        """Add each share to its owner; the shares sum to `total_ns`.

        Args:
            total_ns: of the machine, to be shared.
            passed_ns: meanwhile; blocks cost as long as they are held.
        """
        for (spent, kind), part in zip(self._owners, share(total_ns, self._weights), strict=True):
            if kind == "decode_ns":
                spent.decode_ns += part
            else:
                setattr(spent, kind, getattr(spent, kind) + part)
        for spent, num_blocks in self._holders:
            spent.kv_byte_ns += num_blocks * block_bytes * passed_ns

    def _add(self, spent: Spent, kind: str, start: int, end: int, weight: int) -> None:
        """Count tokens [start, end) of a sequence; `weight` stands beside their own."""
        costs, work, count = self._costs, self.work, end - start
        attended = count * start + count * (count + 1) // 2
        if kind == "decode_ns" or kind == "speculation_ns":
            work.decode_tokens += count
            work.decode_attended += attended
            weight += count * costs.decode_weight + attended * costs.decode_attend_weight
        else:
            work.prefill_tokens += count
            work.prefill_attended += attended
            weight += count * costs.prefill_weight + attended * costs.prefill_attend_weight
        self._owners.append((spent, kind))
        self._weights.append(weight + 1)


def abandon(choices: Sequence[Request], delivered_tokens: int) -> None:
    """Set apart what was decoded for a client that had left: tokens that nobody took."""
    generated = sum(len(choice.output_token_ids) for choice in choices)
    unread = generated - delivered_tokens
    if unread <= 0:
        return
    for choice in choices:
        spent = choice.spent
        lost_ns = spent.decode_ns * unread // generated
        spent.decode_ns -= lost_ns
        spent.abandoned_ns += lost_ns


def usage_of(choices: Sequence[Request]) -> Usage:
    """The usage of a whole request: its prompt once, everything else over all choices."""
    first = choices[0]
    spent = first.spent if len(choices) == 1 else _sum(choices)
    return Usage(
        prompt_tokens=first.num_prompt_tokens,
        completion_tokens=sum([len(choice.output_token_ids) for choice in choices]),
        cached_tokens=first.cached_tokens,
        accepted_prediction_tokens=spent.prediction_accepted,
        rejected_prediction_tokens=spent.prediction_rejected,
        headgate=EngineUsage(
            prefill_ns=spent.prefill_ns,
            decode_ns=spent.decode_ns,
            speculation_ns=spent.speculation_ns,
            recompute_ns=spent.recompute_ns,
            abandoned_ns=spent.abandoned_ns,
            kv_byte_seconds=(spent.kv_byte_ns + _NS_PER_S // 2) // _NS_PER_S,
            draft_tokens=spent.draft_tokens,
            draft_accepted=spent.draft_accepted,
        ),
    )


def _sum(choices: Sequence[Request]) -> Spent:
    names = [field.name for field in fields(Spent)]
    sums = {name: sum(getattr(choice.spent, name) for choice in choices) for name in names}
    return Spent(**sums)
