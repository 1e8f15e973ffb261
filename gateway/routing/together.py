"""Which of some backends answer well together: logits of patterns, and what they say of each.

A fit is a hidden layer and its groups of up to `MOST` backends. A group has one logit for each of
the 2^k patterns of passes, so its backends' probabilities and the differences between them come out
of one distribution: a question that a small model passes is mostly passed by a large one, too.
"""

from collections.abc import Mapping, Sequence
from math import exp
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.routing.figures import log_odds, softmax

MOST = 4
"""Backends of one group: 16 patterns."""
Floats = NDArray[np.floating[Any]]


class Group(Struct, frozen=True):
    """Backends that are predicted together; pattern p has a pass of backend i in bit i."""

    backends: tuple[str, ...]
    start: int
    """Of its logits among all."""

    @property
    def stop(self) -> int:
        """One beyond its last logit."""
        return self.start + (1 << len(self.backends))


def groups_of(names: Sequence[Sequence[str]]) -> tuple[Group, ...]:
    """Groups one after the other."""
    found: list[Group] = []
    for group in names:
        found.append(Group(tuple(group), found[-1].stop if found else 0))
    return tuple(found)


def passes_of(backends: int) -> NDArray[np.int64]:
    """[2^backends, backends], 1 where a pattern has a pass."""
    return (np.arange(1 << backends)[:, None] >> np.arange(backends)) & 1


class Together:
    """Probabilities out of the logits of groups.

    Args:
        groups: a backend that more than one names is the last one's.
        follows: backends of which only opinions are known: (slope, offset) by name, from the
            log-odds of the reference to theirs.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        reference: str,
        follows: Mapping[str, tuple[float, float]],
    ) -> None:
        self._groups = [
            (
                group,
                [np.flatnonzero(passed).tolist() for passed in passes_of(len(group.backends)).T],
            )
            for group in groups
        ]
        """Each with the patterns that each of its backends passes."""
        self._reference = reference
        self._follows = dict(follows)

    def quality(self, logits: Floats) -> dict[str, float]:
        """P(answers well) by backend, of logits [all patterns]."""
        found: dict[str, float] = {}
        values = logits.tolist()  # so few that plain numbers are faster
        for group, passes in self._groups:
            part = values[group.start : group.stop]
            most = max(part)
            chance = [exp(value - most) for value in part]
            total = sum(chance)
            for name, passed in zip(group.backends, passes, strict=True):
                found[name] = sum([chance[pattern] for pattern in passed]) / total
        if self._follows:
            seen = log_odds(found[self._reference])
            for name, (slope, offset) in self._follows.items():
                found[name] = float(1 / (1 + np.exp(-(slope * seen + offset))))
        return found

    def slopes(self, logits: Floats) -> Floats:
        """[all patterns]: how the reference's log-odds follow each logit, at these ones."""
        found = np.zeros(len(logits))
        for group, passes in self._groups:
            if self._reference in group.backends:
                part = logits[group.start : group.stop].astype(np.float64)
                passed = np.zeros(len(part), dtype=bool)
                passed[passes[group.backends.index(self._reference)]] = True
                found[:] = 0.0  # the last fit that names it
                found[group.start : group.stop][passed] = softmax(part[passed])
                found[group.start : group.stop][~passed] = -softmax(part[~passed])
        return found * self._follows.get(self._reference, (1.0, 0.0))[0]
