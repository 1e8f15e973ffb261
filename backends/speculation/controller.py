"""`auto`: how many tokens to guess, from measured acceptance and measured time.

A decode step over S sequences takes base(S), and d longer for each draft token verified in it;
guessing one costs p. A token of the answer is therefore worth base(S) / S, and the i-th draft of
a sequence, kept with probability a^i, pays as long as a^i · base(S) / S > d + p.

An answer that was foreseen (a prediction) is mostly right as a whole or wrong as a whole, and those
of other requests say little of it. All of its guesses together may cost a small part of the steps
that it foresees, beyond what the right ones saved: where drafts are dear, the first are short or
none, and the next grow while they are right.

Plain steps are interspersed, so that base(S) stays true; a proposer that loses rests, and is
tried again for a few steps ever more rarely.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from backends.engine.request import Request
from backends.speculation.proposer import Proposer

_FIRST_PLAIN: Final = 3
"""Steps without drafts before the first with, at a batch size not seen before."""
_PLAIN_EVERY: Final = 24
"""Steps after which one without drafts measures base(S) anew."""
_FIRST_REST: Final = 96
"""Steps that a losing proposer rests before it is tried again; then twice as many, and so on."""
_LONGEST_REST: Final = 96 * 64
_PROBE_STEPS: Final = 4
_PROBE_REQUESTS: Final = 2
_PROBE_TOKENS: Final = 2
_FRESH_STEPS: Final = 8
"""A proposer not asked for a request for so long has to catch up with it first; the time that
takes says nothing about the next guess."""
_PRIOR_TRIALS: Final = 6.0
"""How many trials of its own a request needs to count as much as the proposer's average."""
_FADE: Final = 0.97
_STAKE: Final = 0.03
"""Part of a foreseen answer's steps that its guesses may cost."""


class _Recent:
    """The median of the newest measurements: other processes make single ones many times off."""

    __slots__ = ("_values", "median")

    def __init__(self) -> None:
        self.median = 0.0
        self._values: deque[float] = deque(maxlen=5)

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(value)
        self.median = sorted(self._values)[(len(self._values) - 1) // 2]


@dataclass(slots=True)
class _Acceptance:
    """Draft tokens reached by verification, and those of them that were right."""

    right: float = 0.0
    trials: float = 0.0

    def add(self, proposed: int, accepted: int) -> None:
        self.right = self.right * _FADE + accepted
        self.trials = self.trials * _FADE + accepted + (1 if accepted < proposed else 0)

    def rate(self, prior: float) -> float:
        return (self.right + prior * _PRIOR_TRIALS) / (self.trials + _PRIOR_TRIALS)


@dataclass(slots=True)
class _Own:
    """What is known of one proposer's guesses for one request."""

    acceptance: _Acceptance = field(default_factory=_Acceptance)
    asked_at: int | None = None
    """The step in which it was last asked."""
    saved: float = 0.0
    """Tokens of the answer whose time its guesses saved; negative: cost."""


@dataclass(slots=True)
class _Rest:
    """When a losing proposer is tried again: for a few guesses, for a few requests.

    Looking something up costs next to nothing, so that is tried often, for other requests each
    time. A draft model first has to read each request's text: ever more rarely, and for the same.
    """

    costly: bool
    steps_left: int = 0
    next_rest: int = _FIRST_REST
    probe_left: int = 0
    probed: list[Request] = field(default_factory=list)

    def probe(self, requests: list[Request], tokens: int, step: int) -> list[int] | None:
        """Limits for a probe in this step, None to rest."""
        if self.probe_left == 0:
            self.steps_left -= 1
            if self.steps_left > 0:
                return None
            self.steps_left = self.next_rest
            if self.costly:
                self.next_rest = min(2 * self.next_rest, _LONGEST_REST)
            self.probe_left = _PROBE_STEPS
            self.probed = []
        if not self.costly or not self.probed:
            first = step % len(requests)
            self.probed = (requests[first:] + requests[:first])[:_PROBE_REQUESTS]
        limits = [tokens if request in self.probed else 0 for request in requests]
        if not any(limits):  # they have ended
            self.probe_left = 0
            return None
        return limits

    def guessed(self, num_tokens: int) -> None:
        """A step's guesses were made; a lookup that found nothing was no trial."""
        if self.probe_left and (num_tokens or self.costly):
            self.probe_left -= 1

    def end(self) -> None:
        """The proposer wins again."""
        self.steps_left, self.next_rest, self.probe_left = 0, _FIRST_REST, 0


@dataclass(slots=True)
class _Standing:
    """What is known of one proposer."""

    rest: _Rest
    acceptance: _Acceptance = field(default_factory=_Acceptance)
    guess_ns: dict[int, _Recent] = field(default_factory=dict)
    """Time per guessed token, by the number of requests asked for at once."""
    requests: dict[Request, _Own] = field(default_factory=dict)
    cost: float = 0.0
    """Of a draft token in this step, in units of what a token of the answer is worth."""

    def guess_cost_ns(self, num_requests: int) -> float | None:
        """Time per guessed token when asking for so many requests; None if it has to be tried.

        For numbers not seen yet: as if a call took the same time however many it was for. That
        is the best case; it is tried, and then known.
        """
        seen = self.guess_ns.get(num_requests)
        if seen is not None:
            return seen.median
        if not self.guess_ns:
            return None if self.rest.costly else 0.0
        near = min(self.guess_ns, key=lambda number: abs(number - num_requests))
        return self.guess_ns[near].median * min(1.0, near / num_requests)

    def affordable(self, request: Request, limit: int) -> int:
        """At most `limit`: drafts of a foreseen answer that may all be wrong."""
        if self.cost <= 0.0:
            return limit
        own = self.requests.get(request)
        stake = _STAKE * len(request.prediction_token_ids or ()) + (own.saved if own else 0.0)
        return min(limit, max(0, int(stake / self.cost)))


class Controller:
    """Decides for each step and request how many tokens a proposer may guess."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._step = 0
        self._base_ns: dict[int, _Recent] = {}
        self._draft_ns: dict[int, _Recent] = {}
        self._newest_draft_ns = _Recent()
        self._steps_since_plain: dict[int, int] = {}
        self._standings: dict[str, _Standing] = {}

    def plain_step(self, num_sequences: int) -> bool:
        """Whether this step goes without drafts, to measure what a plain one takes.

        Called once per step, before anything else.
        """
        self._step += 1
        bucket = _bucket(num_sequences)
        since = self._steps_since_plain.get(bucket, 0)
        self._steps_since_plain[bucket] = since + 1
        measured = len(self._base_ns.get(bucket, ()))
        return measured < _FIRST_PLAIN or since >= _PLAIN_EVERY

    def limits(
        self, proposer: Proposer, requests: list[Request], num_sequences: int
    ) -> list[int] | None:
        """Most tokens to guess for each request; None if the proposer rests in this step."""
        standing = self._standings.get(proposer.name)
        if standing is None:
            standing = self._standings[proposer.name] = _Standing(_Rest(proposer.costly))
        most = self._num_tokens * proposer.reach
        limits: list[int] | None = None
        guess_ns = standing.guess_cost_ns(_bucket(len(requests)))
        if guess_ns is not None:
            cost = standing.cost = self._relative_cost(guess_ns, num_sequences)
            prior = standing.acceptance.rate(0.7)
            limits = [
                _worthwhile(own.acceptance.rate(prior) if own is not None else prior, cost, most)
                for own in map(standing.requests.get, requests)
            ]
        if limits and any(limits):
            standing.rest.end()
        else:
            limits = standing.rest.probe(requests, min(_PROBE_TOKENS, most), self._step)
        if limits and proposer.foresees:
            limits = list(map(standing.affordable, requests, limits))
        return limits

    def guessed(
        self, proposer: str, requests: list[Request], num_tokens: int, took_ns: int
    ) -> None:
        """Guessing so many tokens for these requests took so long."""
        standing = self._standings[proposer]
        standing.rest.guessed(num_tokens)
        fresh = True
        for request in requests:
            own = standing.requests.get(request)
            if own is None:
                own = standing.requests[request] = _Own()
            fresh = fresh and own.asked_at is not None
            fresh = fresh and self._step - (own.asked_at or 0) <= _FRESH_STEPS
            own.asked_at = self._step
        if fresh and num_tokens:
            number = _bucket(len(requests))
            standing.guess_ns.setdefault(number, _Recent()).add(took_ns / num_tokens)

    def verified(self, proposer: str, request: Request, proposed: int, accepted: int) -> None:
        """Verification took the first `accepted` of `proposed` drafts."""
        standing = self._standings[proposer]
        standing.acceptance.add(proposed, accepted)
        own = standing.requests.get(request)
        if own is None:
            own = standing.requests[request] = _Own()
        own.acceptance.add(proposed, accepted)
        own.saved += accepted - standing.cost * proposed

    def forget(self, request: Request) -> None:
        """The request has ended."""
        for standing in self._standings.values():
            standing.requests.pop(request, None)

    def step_took(self, num_sequences: int, num_drafts: int, took_ns: int) -> None:
        """A step that only decoded took so long, guessing not counted."""
        bucket = _bucket(num_sequences)
        if num_drafts == 0:
            self._base_ns.setdefault(bucket, _Recent()).add(took_ns)
            self._steps_since_plain[bucket] = 0
        elif bucket in self._base_ns:
            extra = (took_ns - self._base_ns[bucket].median) / num_drafts
            self._draft_ns.setdefault(bucket, _Recent()).add(max(0.0, extra))
            self._newest_draft_ns.add(max(0.0, extra))

    def _relative_cost(self, guess_ns: float, num_sequences: int) -> float:
        """Cost of a draft token in units of what a token of the answer is worth."""
        bucket = _bucket(num_sequences)
        base = self._base_ns.get(bucket)
        if base is None or base.median <= 0.0:
            return 0.0
        verify_ns = self._draft_ns.get(bucket, self._newest_draft_ns).median
        return (verify_ns + guess_ns) * num_sequences / base.median


def _worthwhile(rate: float, cost: float, most: int) -> int:
    """Drafts that each pay for themselves: those i with rate^i > cost."""
    count, kept = 0, rate
    while count < most and kept > cost:
        count += 1
        kept *= rate
    return count


def _bucket(num_sequences: int) -> int:
    """Batch sizes that count as the same: each of the first eight, then groups of four."""
    return num_sequences if num_sequences <= 8 else 8 + (num_sequences - 5) // 4
