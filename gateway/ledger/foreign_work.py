"""What work takes at somebody else's server, fitted to when its answers' pieces arrive.

A request's work is own + prefill x fresh prompt + attention within it, and for each further token
of the answer its part of a step + decode + attention to what is before it (the terms of
`backends.engine.step_costs`). Nobody tells these times, and over a request's life they cannot be
told apart: long prompts come with long answers of others. So a stream is cut into windows of some
tokens. In each the server made as many steps as the stream got tokens, and what else it did
meanwhile is known once all who were there have ended: whose prompts it read, whose tokens it made.
The windows tell steps from tokens and prompts from steps; the time to the first token, or of a
whole answer its life, tells what each request costs beside. Where an answer was not streamed, when
its tokens came is a guess, so windows beside one teach only while others are rare.

Tokens of the prompt that were in a cache are attended to at a rate of their own: many requests
share them, so some servers read them once for all.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from backends.client.server_metrics import Terms
from backends.fitting import LinearFit

_WINDOW: Final = 8
"""Pieces of an answer."""
_PRIOR: Final = (4.0, 8.0, 1.0, 0.0015, 1.2, 0.003, 0.003)
"""Nanoseconds per: request, step, fresh prompt token, pair of it and one before, answer token, pair
of it and one before that was computed, and that was cached."""
_WORTH: Final = (0.01, 0.01, 0.01, 3.0, 0.01, 1.0, 0.3)
"""In observations: attention can hardly be told from the tokens that attend."""
_DOUBTFUL: Final = 0.5
"""What was done in a window is a guess where several prompts were read; such ones are too long."""
_SKIPS: Final = 32
"""So many windows beside answers that are not streamed may be left out for each one without."""
_WINDOWS: Final = 32
"""To learn from at once, which takes some milliseconds; more until there were _MANY."""
_MANY: Final = 1_000
_MOST_LATE_NS: Final = 300_000
_ONE_READ_NS: Final = 150_000
"""Pieces closer than that came with the same read; no step is as short."""
_DECODED: Final = 2
"""Its place among what was done."""
_MOST_WAITING: Final = 64
_MOST_KEPT: Final = 512


class Seen(Struct, eq=False):
    """A request that has ended, as it was seen."""

    began_ns: int
    ended_ns: int
    prompt_tokens: int
    fresh_tokens: int
    answer_tokens: int
    marks: Sequence[tuple[int, int]]
    """Of a stream: when (nanoseconds) how many pieces of the answer had come, from the first on."""
    first_ns: int
    """When its prompt had been read."""
    _at: Sequence[int] = ()
    _tokens: Sequence[float] = ()

    def __post_init__(self) -> None:
        pieces = max(self.marks[-1][1], 1) if self.marks else 1
        times = [at for at, _ in self.marks] or [self.first_ns]
        counts = [float(count) for _, count in self.marks] or [1.0]
        more = max(self.answer_tokens - 1, 0) / max(pieces - 1, 1)
        self._at = [*times, max(self.ended_ns, times[-1])]
        self._tokens = [*((count - 1) * more for count in counts), max(self.answer_tokens - 1.0, 0)]

    def decoded(self, at_ns: int) -> float:
        """Tokens after the first that had come by then."""
        place = bisect_right(self._at, at_ns)
        if place == 0:
            return 0.0
        if place == len(self._at):
            return self._tokens[-1]
        (a, b), (x, y) = self._at[place - 1 : place + 1], self._tokens[place - 1 : place + 1]
        return x + (y - x) * (at_ns - a) / max(b - a, 1)


class Weights:
    """What one server's work takes."""

    def __init__(self) -> None:
        self._fit = LinearFit(_PRIOR, prior_observations=_WORTH, doubtful=_DOUBTFUL)
        self._unlearned: deque[Seen] = deque(maxlen=_MOST_WAITING)
        self._ended: deque[Seen] = deque(maxlen=_MOST_KEPT)
        self._learned = 0
        """Windows."""
        self._may_skip = 0

    @property
    def own_ns(self) -> float:
        """What a request takes before and after it is computed."""
        return self._fit.coefficients()[0] if self._fit.fitted else 0.0

    def work_ns(self, prompt: float, fresh: float, answer: float, beside: float) -> float:
        """What a request's work takes.

        Args:
            prompt, fresh, answer: tokens; fresh ones of the prompt were in no cache.
            beside: how many share its steps, itself included.
        """
        _, step, _, _, decode, attend, attend_cached = self._fit.coefficients()
        more, cached = max(answer - 1, 0.0), prompt - fresh
        attention = attend * more * (fresh + more / 2) + attend_cached * more * cached
        reading_ns = self._reading_ns(fresh, cached)
        return reading_ns + answer * step / beside + decode * more + attention

    def _reading_ns(self, fresh: float, cached: float = 0.0) -> float:
        """A prompt: its tokens, and what these attend to."""
        _, _, prefill, pair, *_ = self._fit.coefficients()
        return prefill * fresh + pair * fresh * (fresh / 2 + cached)

    def answered(self, prompt: float, passed_ns: float, beside: float) -> float:
        """How much of an answer there is probably after so long; below 1 the prompt is read."""
        own, step, _, _, decode, attend, _ = self._fit.coefficients()
        left_ns, reading_ns = passed_ns - own, self._reading_ns(prompt)
        if left_ns <= reading_ns:
            return max(left_ns, 0.0) / max(reading_ns, 1.0) - 1e-9
        return 1 + (left_ns - reading_ns) / max(step + (decode + attend * prompt) * beside, 1.0)

    def told(self, terms: Terms, ns: float) -> None:
        """What the server's own sums say."""
        requests, prompt, answer, answer_beside = terms
        self._fit.observe((requests, answer, prompt, 0.0, answer_beside, 0.0, 0.0), ns)

    def first_after(self, fresh: float) -> int:
        """How long a request will probably take until its prompt has been read, nanoseconds."""
        own, step, *_ = self._fit.coefficients()
        return round(own + step + self._reading_ns(fresh))

    def ended(self, seen: Seen) -> None:
        """Remember a request until there is time to learn from it."""
        self._ended.append(seen)
        self._unlearned.append(seen)

    def learn(self, oldest_ns: float) -> None:
        """From requests all of whose time is over for everybody who was there.

        Args:
            oldest_ns: since when a request is in flight there; infinity: none is.
        """
        most = _WINDOWS if self._learned > _MANY else 4 * _WINDOWS
        for _ in range(len(self._unlearned)):
            seen = self._unlearned.popleft()
            if seen.ended_ns >= oldest_ns:
                self._unlearned.append(seen)
                continue
            for terms, ns in self._observations(seen):
                self._fit.observe(terms, ns)
                self._learned += 1
                most -= 1
            if most <= 0:
                break
        keep_ns = min([oldest_ns, *(seen.began_ns for seen in self._unlearned)])
        while self._ended and self._ended[0].ended_ns < keep_ns:
            self._ended.popleft()

    def _observations(self, seen: Seen) -> Iterator[tuple[tuple[float, ...], float]]:
        marks, began_ns = _reads(seen.marks), seen.began_ns
        there = [
            one for one in self._ended if one.ended_ns >= began_ns and one.began_ns <= seen.ended_ns
        ]
        if len(marks) < 2:
            whole = _done(there, began_ns, seen.ended_ns)
            yield (1.0, float(seen.answer_tokens), *whole), seen.ended_ns - began_ns
            return
        per_piece = max(seen.answer_tokens - 1, 1) / max(marks[-1][1] - 1, 1)
        done = _done(there, began_ns, seen.first_ns)
        yield (1.0, 1 + done[_DECODED] / 2, *done), seen.first_ns - began_ns
        # Pieces of one step arrive one after another: those a little later belong to it, too.
        late_ns = min((marks[-1][0] - marks[0][0]) // (2 * len(marks)), _MOST_LATE_NS)
        for (from_ns, before), (until_ns, after) in pairwise(_edges(marks)):
            if self._skips(there, from_ns, until_ns):
                continue
            steps = (after - before) * per_piece
            done = _done(there, from_ns + late_ns, until_ns + late_ns)
            yield (0.0, steps, *done), until_ns - from_ns

    def _skips(self, there: Sequence[Seen], from_ns: int, until_ns: int) -> bool:
        """Whether a window is left out, as what was made in it is not well known."""
        if any(not o.marks and o.began_ns < until_ns and o.ended_ns > from_ns for o in there):
            self._may_skip = max(self._may_skip - 1, -1)
            return self._may_skip >= 0
        self._may_skip = _SKIPS
        return False


def _reads(marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Pieces that one read brought as one, at the moment of the first: how far the answer was."""
    found: list[tuple[int, int]] = []
    last_ns = 0
    for at_ns, count in marks:
        if found and at_ns - last_ns < _ONE_READ_NS:
            found[-1] = (found[-1][0], count)
        else:
            found.append((at_ns, count))
        last_ns = at_ns
    return found


def _edges(marks: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Where windows of at least so many pieces begin and end."""
    found = list(marks[:1])
    for mark in marks:
        if mark[1] - found[-1][1] >= _WINDOW:
            found.append(mark)
    return found


def _done(there: Sequence[Seen], from_ns: int, until_ns: int) -> tuple[float, ...]:
    """By these requests in a stretch: prompt tokens read, pairs of them and what is before,
    tokens decoded, and what these attended to, computed and cached."""
    prompts = pairs = decoded = attended = attended_cached = 0.0
    for one in there:
        if one.ended_ns < from_ns or one.began_ns > until_ns:
            continue
        cached = one.prompt_tokens - one.fresh_tokens
        if from_ns < one.first_ns <= until_ns:
            prompts += one.fresh_tokens
            pairs += one.fresh_tokens * (one.fresh_tokens / 2 + cached)
        a, b = one.decoded(from_ns), one.decoded(until_ns)
        decoded += b - a
        attended += (b - a) * one.fresh_tokens + (b * b - a * a) / 2
        attended_cached += (b - a) * cached
    return prompts, pairs, decoded, attended, attended_cached
