"""What a server computed while it answered, as far as the moments of its tokens tell.

While an answer grew, so many steps ran, in which so many tokens of all answers were decoded and so
much of other prompts was computed. The same is known of any stretch of time, and of the wait for a
first token where nothing else was under way. `headgate plan` fits its step times to these rows.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from backends.bench.load_client import Answered

WORK: Final = (
    "steps",
    "decode_tokens",
    "decode_attended",
    "prefill_tokens",
    "prefill_attended",
    "prompts",
    "requests",
    "seconds",
)
"""Columns. attended: summed over the tokens, how many tokens each looks back at. prompts: whose
first token came in the step before. requests: received within these seconds while nothing else was
under way."""
_BEGUN: Final = 4
"""Where `prompts` stands in the sums of events: steps, requests and seconds are not among them."""
_ROWS: Final = 24
"""Of each kind."""


class _Event(NamedTuple):
    """A piece of an answer."""

    at_s: float
    request: int
    first: bool
    size: int
    """Tokens of the sequence that it looks back at."""


def work_rows(answers: Sequence[Answered]) -> list[list[float]]:
    """Rows of `WORK`, of growing answers, of stretches of the run and of lone first tokens."""
    events = sorted(event for number, one in enumerate(answers) for event in _events(number, one))
    at = np.array([event.at_s for event in events])
    steps = _steps(events)
    first = np.array([event.first for event in events])
    size = np.array([event.size for event in events], dtype=float)
    looked_back = np.where(first, size * (size + 1) / 2, 0.0)
    each = (~first, np.where(first, 0.0, size), np.where(first, size, 0.0), looked_back, first)
    until = np.zeros((len(events) + 1, len(each)))
    until[1:] = np.cumsum(np.stack(each, axis=1), axis=0)
    grown, alone = [], []
    for one in answers:
        begin, end, prompt = one.times_s[0], one.times_s[-1], one.prompt_tokens
        if len(one.times_s) > 1:
            low, high = np.searchsorted(at, (begin, end), "right")
            done = until[high] - until[low]
            done[_BEGUN] = np.diff(until[np.searchsorted(at, (begin, end)), _BEGUN])[0]
            grown.append([len(one.times_s) - 1, *done, 0, end - begin])
        if _alone(one, answers):
            alone.append([1, 0, 0, prompt, prompt * (prompt + 1) / 2, 0, 1, begin - one.sent_s])
    stretches = []
    pauses = _pauses(answers)
    ends = np.flatnonzero(np.diff(steps, append=steps[-1] + 1))  # each step's last event
    for low, high in zip(*_cuts(len(ends)), strict=True):
        begin, end = at[ends[low]], at[ends[high]]
        done = until[ends[high] + 1] - until[ends[low] + 1]
        before = until[ends[high - 1] + 1] - (until[ends[low - 1] + 1] if low else until[0])
        done[_BEGUN] = before[_BEGUN]
        idle = [(max(a, begin), min(b, end)) for a, b in pauses if a < end and b > begin]
        seconds = end - begin - sum(b - a for a, b in idle)
        stretches.append([high - low, *done, len(idle), seconds])
    return [*_sums(grown, _ROWS), *_sums(stretches, _ROWS), *_sums(alone, _ROWS // 4)]


def _events(number: int, one: Answered) -> list[_Event]:
    per_piece = one.output_tokens / len(one.times_s)
    return [
        _Event(at_s, number, place == 0, one.prompt_tokens + round(place * per_piece))
        for place, at_s in enumerate(one.times_s)
    ]


def _steps(events: Sequence[_Event]) -> np.ndarray:
    """The step that each event came out of: a sequence gets one piece a step."""
    found, step = [], 0
    served: set[int] = set()
    for event in events:
        if event.request in served:
            step += 1
            served.clear()
        served.add(event.request)
        found.append(step)
    return np.array(found)


def _cuts(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Where stretches begin and end, out of so many steps."""
    places = np.unique(np.linspace(0, count - 1, _ROWS + 1).astype(int))
    return places[:-1], places[1:]


def _pauses(answers: Sequence[Answered]) -> list[tuple[float, float]]:
    """When nothing was under way, between the first request and the last answer."""
    found, until = [], None
    for one in sorted(answers, key=lambda one: one.sent_s):
        if until is not None and one.sent_s > until:
            found.append((until, one.sent_s))
        until = max(until or 0.0, one.times_s[-1])
    return found


def _alone(one: Answered, answers: Sequence[Answered]) -> bool:
    """Whether nothing else was under way from its sending to its first token."""
    return not any(
        other is not one and other.sent_s < one.times_s[0] and other.times_s[-1] > one.sent_s
        for other in answers
    )


def _sums(rows: Sequence[Sequence[float]], most: int) -> list[list[float]]:
    """Sums of neighbours, so that at most so many rows are left."""
    if not rows:
        return []
    parts = np.array_split(np.array(rows, dtype=float), min(most, len(rows)))
    sums = [part.sum(axis=0) for part in parts]
    return [[float(f"{value:.7g}") for value in row] for row in sums if row[-1] > 0]
