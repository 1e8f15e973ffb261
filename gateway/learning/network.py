"""Fitting who answers well together: pattern logits, linear but for one small hidden layer.

The loss is the cross-entropy of the pattern of passes in each group. Where a row does not know
every backend, its goal is what the model itself says of the unknown part, given the known one: the
gradient of the marginal likelihood. Scores between 0 and 1 count as that share of passes.

Source: Dempster, Laird, Rubin 1977, "Maximum Likelihood from Incomplete Data via the EM Algorithm".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.learning.adam import Adam
from gateway.learning.design import Matrix
from gateway.routing.figures import softmax
from gateway.routing.together import Group, passes_of

HIDDEN = 16
START = 0.1
"""Spread of the hidden layer's first weights."""
BATCH = 512
LEAST_STEPS = 200
"""As many on few rows as on many."""
STEP = 0.02
STEEPER = 4.0
"""Times that: the step of what is linear."""
L2 = 5.0
"""Penalty of all rows together."""
LEAST_SEEN = 3
"""Rows that have a bucket; of fewer nothing could be learnt but the row itself."""
Floats = NDArray[Any]


class Network(Struct, frozen=True):
    """logits [N, P] = x @ linear + bias + max(0, x @ hidden + hidden_bias) @ up."""

    weights: NDArray[np.float32]
    """[R + F + D, P + H]: linear, then hidden."""
    bias: NDArray[np.float32]
    """[P + H]"""
    up: NDArray[np.float32]
    """[H, P]"""

    def __call__(self, x: Matrix) -> NDArray[np.float64]:
        """[N, P]"""
        logits = self.up.shape[1]
        found = np.asarray(x @ self.weights, dtype=np.float64) + self.bias
        return np.asarray(found[:, :logits] + np.maximum(found[:, logits:], 0) @ self.up)


class Goal:
    """What rows say of a group's patterns.

    Args:
        scores: [N, k] in 0..1; NaN where a backend was not asked.
    """

    def __init__(self, scores: Floats) -> None:
        backends = scores.shape[1]
        passes = passes_of(backends)
        known = ~np.isnan(scores)
        likely = np.where(passes, scores[:, None], 1 - scores[:, None])
        self._weights = np.where(known[:, None], likely, 1.0).prod(2)
        """[N, 2^k]: of the known part of each pattern."""
        masks, self._kind = np.unique(known, axis=0, return_inverse=True)
        alike = passes[:, None] == passes[None]
        self._same = (alike | ~masks[:, None, None]).all(-1).astype(np.float64)
        """[masks, 2^k, 2^k]: which patterns agree in what is known."""
        self._partial = [kind for kind, mask in enumerate(masks) if not mask.all()]

    def __call__(self, said: Floats, rows: NDArray[np.int64] | slice = slice(None)) -> Floats:
        """[rows, 2^k] wanted where the model says `said` [rows, 2^k]."""
        goal, kinds = self._weights[rows].copy(), self._kind[rows]
        for kind in self._partial:
            at = kinds == kind
            goal[at] *= said[at] / np.maximum(said[at] @ self._same[kind], 1e-12)
        return np.asarray(goal)

    def loss(self, said: Floats) -> float:
        """Cross-entropy of what is known, added over the rows."""
        marginal = said.copy()
        for kind in self._partial:
            at = self._kind == kind
            marginal[at] = said[at] @ self._same[kind]
        return float(-(self(said) * np.log(np.maximum(marginal, 1e-12))).sum())


def fit_network(
    x: Matrix,
    scores: Floats,
    groups: Sequence[Group],
    *,
    seen: Matrix,
    epochs: int,
    hidden: int = HIDDEN,
    seed: int = 0,
) -> Network:
    """A network by Adam with a falling step.

    Args:
        x: [N, R + F + D] CSR.
        scores: [N, K], the groups' backends in their order.
        seen: rows as they are, [≤ N, R + F + D]: columns that are rare in them are left out.
    """
    rng = np.random.default_rng(seed)
    used = np.flatnonzero(np.diff(seen.tocsc().indptr) >= LEAST_SEEN)
    part, count = x[:, used], x.shape[0]
    logits = groups[-1].stop
    goals = goals_of(scores, groups)
    weights = rng.standard_normal((len(used), logits + hidden)) * START
    weights[:, :logits] = 0
    up = rng.standard_normal((hidden, logits)) / np.sqrt(hidden)
    paces = np.where(np.arange(logits + hidden) < logits, STEEPER, 1.0)
    adam = Adam([weights, np.zeros(logits + hidden), up], [paces, paces, 1.0])
    first, bias, up = adam.values
    l2 = np.float32(L2 / seen.shape[0])
    epochs = max(epochs, -(-LEAST_STEPS // -(-count // BATCH)))
    steps = epochs * -(-count // BATCH)
    for step in range(steps):
        at = step % -(-count // BATCH)
        if at == 0:
            order = rng.permutation(count)
        rows = order[at * BATCH : (at + 1) * BATCH]
        some = part[rows]
        found = some @ first + bias
        units = np.maximum(found[:, logits:], 0)
        said = found[:, :logits] + units @ up
        error = np.empty_like(found)
        for group, goal in goals:
            chance = softmax(said[:, group.start : group.stop])
            error[:, group.start : group.stop] = (chance - goal(chance, rows)) / len(rows)
        wrong = error[:, :logits]
        error[:, logits:] = (wrong @ up.T) * (units > 0)
        gradients = (some.T @ error + l2 * first, error.sum(0), units.T @ wrong + l2 * up)
        adam.step(gradients, STEP * (1 - step / steps))
    whole = np.zeros((x.shape[1], logits + hidden), np.float32)
    whole[used] = first
    return Network(whole, bias, up)


def goals_of(scores: Floats, groups: Sequence[Group]) -> list[tuple[Group, Goal]]:
    """Each group with what its columns of the scores say."""
    ends = np.cumsum([0, *(len(group.backends) for group in groups)])
    return [
        (group, Goal(scores[:, first:last]))
        for group, first, last in zip(groups, ends, ends[1:], strict=False)
    ]


def chances(logits: Floats, groups: Sequence[Group]) -> NDArray[np.float64]:
    """P(each backend passes), [N, K], of logits [N, P]."""
    return np.hstack(
        [
            softmax(logits[:, group.start : group.stop]) @ passes_of(len(group.backends))
            for group in groups
        ]
    )
