"""`auto`: how many tokens to guess, from measured acceptance and measured time.

A decode step over S sequences takes base(S), and d longer for each draft token verified in it;
guessing one costs p. A token of the answer is therefore worth base(S) / S, and the i-th draft of
a sequence, kept with probability a^i, pays as long as a^i · base(S) / S > d + p.

Plain steps and small probes are interspersed, so that the figures stay true when the load changes.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from backends.engine.request import Request

_FIRST_PLAIN: Final = 3
"""Steps without drafts before the first with, at a batch size not seen before."""
_PLAIN_EVERY: Final = 24
"""Steps after which one without drafts measures base(S) anew."""
_PROBE_EVERY: Final = 96
"""Steps after which a proposer that loses is tried again."""
_PROBE_TOKENS: Final = 2
_PRIOR_TRIALS: Final = 6.0
"""How many trials of its own a request needs to count as much as the proposer's average."""
_FADE: Final = 0.97


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
class _Standing:
    """What is known of one proposer."""

    acceptance: _Acceptance = field(default_factory=_Acceptance)
    guess_ns: _Recent = field(default_factory=_Recent)
    steps_off: int = 0
    requests: dict[Request, _Acceptance] = field(default_factory=dict)


class Controller:
    """Decides for each step and request how many tokens a proposer may guess."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._base_ns: dict[int, _Recent] = {}
        self._draft_ns = _Recent()
        self._steps_since_plain: dict[int, int] = {}
        self._standings: dict[str, _Standing] = {}

    def plain_step(self, num_sequences: int) -> bool:
        """Whether this step goes without drafts, to measure what a plain one takes."""
        bucket = _bucket(num_sequences)
        since = self._steps_since_plain.get(bucket, 0)
        self._steps_since_plain[bucket] = since + 1
        measured = len(self._base_ns.get(bucket, ()))
        return measured < _FIRST_PLAIN or since >= _PLAIN_EVERY

    def limits(
        self, proposer: str, reach: int, requests: list[Request], num_sequences: int
    ) -> list[int] | None:
        """Most tokens to guess for each request; None if the proposer rests in this step."""
        standing = self._standing(proposer)
        most = self._num_tokens * reach
        cost = self._relative_cost(standing, num_sequences)
        prior = standing.acceptance.rate(0.7)
        limits = [
            _worthwhile(own.rate(prior) if own is not None else prior, cost, most)
            for own in map(standing.requests.get, requests)
        ]
        if any(limits):
            standing.steps_off = 0
            return limits
        standing.steps_off += 1
        if standing.steps_off < _PROBE_EVERY:
            return None
        standing.steps_off = 0
        return [min(_PROBE_TOKENS, most)] * len(requests)

    def guessed(self, proposer: str, num_tokens: int, took_ns: int) -> None:
        """A proposer took so long for so many tokens (0: it had nothing to say)."""
        self._standing(proposer).guess_ns.add(took_ns / max(1, num_tokens))

    def verified(self, proposer: str, request: Request, proposed: int, accepted: int) -> None:
        """Verification took the first `accepted` of `proposed` drafts."""
        standing = self._standing(proposer)
        standing.acceptance.add(proposed, accepted)
        own = standing.requests.get(request)
        if own is None:
            own = standing.requests[request] = _Acceptance()
        own.add(proposed, accepted)

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
            self._draft_ns.add(max(0.0, extra))

    def _relative_cost(self, standing: _Standing, num_sequences: int) -> float:
        """Cost of a draft token in units of what a token of the answer is worth."""
        base = self._base_ns.get(_bucket(num_sequences))
        if base is None or base.median <= 0.0:
            return 0.0
        return (self._draft_ns.median + standing.guess_ns.median) * num_sequences / base.median

    def _standing(self, proposer: str) -> _Standing:
        standing = self._standings.get(proposer)
        if standing is None:
            standing = self._standings[proposer] = _Standing()
        return standing


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
