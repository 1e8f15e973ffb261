"""Where the engine's time went: each step's wall time shared among its sequences, idle measured."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from backends.contract import EngineUsage, Usage
from backends.engine.request import Request, Spent
from backends.engine.runner import ScheduledSequence

_NS_PER_S = 1_000_000_000


class EngineClock(Struct, frozen=True, kw_only=True):
    """Nanoseconds since the engine's start, each kind measured by itself."""

    since_start_ns: int
    loading_ns: int
    """From the start until the engine could take requests."""
    busy_ns: int
    """Inside `step()`."""
    idle_ns: int
    """Without any request to work on."""
    unshared_ns: int
    """Of the busy time: the end of the last step, still to be shared with the next one's."""


class Stopwatch:
    """Measures loading, busy and idle intervals, each from its own start and end stamps."""

    def __init__(self, now_ns: Callable[[], int], started_ns: int | None = None) -> None:
        ready = now_ns()
        self._now_ns = now_ns
        self._started_ns = ready if started_ns is None else started_ns
        self._loading_ns = ready - self._started_ns
        self._idle_ns = 0
        self._idle_since: int | None = ready
        self.busy_ns = 0
        self.unshared_ns = 0

    def work_begins(self) -> None:
        """There is a request to work on."""
        if self._idle_since is not None:
            self._idle_ns += self._now_ns() - self._idle_since
            self._idle_since = None

    def work_ends(self) -> None:
        """There is none any more."""
        if self._idle_since is None:
            self._idle_since = self._now_ns()

    def read(self) -> EngineClock:
        """The totals up to now."""
        now = self._now_ns()
        waiting = 0 if self._idle_since is None else now - self._idle_since
        return EngineClock(
            since_start_ns=now - self._started_ns,
            loading_ns=self._loading_ns,
            busy_ns=self.busy_ns,
            idle_ns=self._idle_ns + waiting,
            unshared_ns=self.unshared_ns,
        )


def share(total: int, weights: Sequence[int]) -> list[int]:
    """Divide an integer in proportion to weights; the shares sum to it exactly.

    Largest remainders are rounded up, so no share is off by one or more. Weights are at least 1,
    and there is at least one.
    """
    whole = sum(weights)
    if whole == len(weights):  # decoding only: all weights are 1
        base, left = divmod(total, whole)
        return [base + 1] * left + [base] * (whole - left)
    shares = [total * weight // whole for weight in weights]
    left = total - sum(shares)
    if left:
        remainder = [-(total * weight % whole) for weight in weights]
        for place in sorted(range(len(weights)), key=remainder.__getitem__)[:left]:
            shares[place] += 1
    return shares


class StepBill:
    """One step's time, shared by scheduled tokens, each token for what it was computed.

    Make it and `enter` every sequence before the scheduler learns the results (until then blocks
    are held, and recomputed tokens are those below what was computed before); `verified` for
    those with drafts; then `charge` once.
    """

    def __init__(self, running: Sequence[Request]) -> None:
        self._holders = [(request.spent, len(request.block_ids)) for request in running]
        self._owners: list[tuple[Spent, str]] = []
        self._weights: list[int] = []
        self.prompt_tokens = 0
        self.recomputed_tokens = 0
        self.draft_tokens = 0
        self.draft_accepted = 0

    @property
    def is_empty(self) -> bool:
        """Nothing was computed."""
        return not self._weights

    @property
    def decodes_only(self) -> bool:
        """No part of a prompt was computed, none was recomputed."""
        return self.prompt_tokens == 0 and self.recomputed_tokens == 0

    def enter(self, part: ScheduledSequence) -> None:
        """Count the known tokens of one scheduled sequence: prompt, answer, recomputed."""
        request, start = part.request, part.start
        end = start + part.num_tokens - part.num_drafts
        if start >= request.num_prompt_tokens and start >= request.max_computed_tokens:
            self._add(request.spent, "decode_ns", end - start)  # most parts of most steps
            return
        again = min(end, request.max_computed_tokens) - start
        if again > 0:
            self._add(request.spent, "recompute_ns", again)
            self.recomputed_tokens += again
            start += again
        prompt = min(end, request.num_prompt_tokens) - start
        if prompt > 0:
            self._add(request.spent, "prefill_ns", prompt)
            self.prompt_tokens += prompt
            start += prompt
        if end > start:
            self._add(request.spent, "decode_ns", end - start)

    def verified(self, part: ScheduledSequence, accepted: int) -> None:
        """Count a sequence's drafts: an accepted one was decoding, a rejected one speculation."""
        spent, rejected = part.request.spent, part.num_drafts - accepted
        spent.draft_tokens += part.num_drafts
        spent.draft_accepted += accepted
        self.draft_tokens += part.num_drafts
        self.draft_accepted += accepted
        if accepted:
            self._add(spent, "decode_ns", accepted)
        if rejected:
            self._add(spent, "speculation_ns", rejected)

    def charge(self, total_ns: int, block_bytes: int) -> None:
        """Add each share to its owner; the shares sum to `total_ns`. Blocks cost while held."""
        for (spent, kind), part in zip(self._owners, share(total_ns, self._weights), strict=True):
            setattr(spent, kind, getattr(spent, kind) + part)
        for spent, num_blocks in self._holders:
            spent.kv_byte_ns += num_blocks * block_bytes * total_ns

    def _add(self, spent: Spent, kind: str, tokens: int) -> None:
        self._owners.append((spent, kind))
        self._weights.append(tokens)


def usage_of(choices: Sequence[Request]) -> Usage:
    """The usage of a whole request: its prompt once, everything else over all choices."""
    spent = [choice.spent for choice in choices]
    kv_byte_ns = sum(s.kv_byte_ns for s in spent)
    return Usage(
        prompt_tokens=choices[0].num_prompt_tokens,
        completion_tokens=sum(len(choice.output_token_ids) for choice in choices),
        cached_tokens=choices[0].cached_tokens,
        accepted_prediction_tokens=sum(s.prediction_accepted for s in spent),
        rejected_prediction_tokens=sum(s.prediction_rejected for s in spent),
        headgate=EngineUsage(
            prefill_ns=sum(s.prefill_ns for s in spent),
            decode_ns=sum(s.decode_ns for s in spent),
            speculation_ns=sum(s.speculation_ns for s in spent),
            recompute_ns=sum(s.recompute_ns for s in spent),
            kv_byte_seconds=(kv_byte_ns + _NS_PER_S // 2) // _NS_PER_S,
            draft_tokens=sum(s.draft_tokens for s in spent),
            draft_accepted=sum(s.draft_accepted for s in spent),
        ),
    )
