"""What cascades are expected to cost and how good they are, on many requests at once.

Where a rung's verdict is known (recorded when it was judged, or its judge's signals stand in a file
of outcomes), it decides as it does when serving. Elsewhere the judge's own spread says what it
probably makes of an answer, given what the question promised; a judge without one is taken to say
just that. All rungs that answer are paid for in full, and so are their judges: what a rejected
answer saves as a draft, and rungs that fail, are not counted.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.dispatch.cascade_costs import judging_backend
from gateway.routing.judges import Judges, Spread
from policies.model import Accept
from policies.objective import NANO

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST_LOGIT = 1e-3
GRID, HALVINGS = 129, 30
"""Places of log-odds at which moves are centred, and steps to find by how much."""
FLAT = Spread(own=(0.0,))
SOURCES = ("recorded", "calibrated", "question")
"""Where verdicts come from: known ones; the judge's spread; only what the question promised."""


class Told(Struct, frozen=True, kw_only=True):
    """What is known of N requests, by backend; NaN: unknown."""

    quality: Mapping[str, Floats]
    """[N], P(it answers well), by the question."""
    costs: Mapping[str, Floats]
    """[N] nano-dollars of one answer."""
    seconds: Mapping[str, Floats]
    """[N]"""
    looks: Mapping[str, Floats]
    """[N] nano-dollars of the judge backend's look at that one's answer; empty: none judges."""
    p_good: Mapping[str, Floats]
    """[N], as a judge has said of that backend's answer; −1: it could not say."""
    gain: Mapping[str, Floats]
    """[N], of the rungs above it, then, less what they cost; see `policies.cascade.worth`."""


class Climbed(Struct, frozen=True, kw_only=True):
    """What one ladder is expected to do on each of N requests."""

    cost: Floats
    """[N] nano-dollars."""
    seconds: Floats
    """[N]"""
    quality: Floats
    """[N]"""
    stands: Mapping[str, Floats]
    """[N] by rung: the probability that its answer is the one given."""
    asked: Floats
    """[N], rungs that answer."""
    source: NDArray[np.int64]
    """[N], of SOURCES: the least certain of its verdicts."""


def climb(ladder: Sequence[str], accept: Accept, told: Told, judges: Judges) -> Climbed:
    """Ask rung by rung, as far as the rungs before are rejected."""
    rows = len(told.quality[ladder[0]])
    open_ = np.ones(rows)
    cost, seconds, quality, asked = (np.zeros(rows) for _ in range(4))
    stands: dict[str, Floats] = {}
    source = np.zeros(rows, dtype=np.int64)
    promised = {name: told.quality[name] for name in ladder}
    look = judging_backend(accept)
    for place, name in enumerate(ladder):
        above = ladder[place + 1 :]
        asked += open_
        seconds += _part(open_, told.seconds[name])
        if not above:
            cost += _part(open_, told.costs[name])
            quality += _part(open_, promised[name])
            stands[name] = open_
            break
        answers = accept.n if accept.judge == "consistency" else 1
        cost += answers * _part(open_, told.costs[name])
        cost += 0.0 if look is None else _part(open_, told.looks[name])
        verdict = _judged(name, above, accept, told, promised, judges)
        source = np.where(open_ > 0, np.maximum(source, verdict.source), source)
        stands[name] = open_ * verdict.kept
        quality += _part(open_, verdict.good)
        open_ = open_ * (1 - verdict.kept)
        promised |= verdict.promised
    return Climbed(
        cost=cost, seconds=seconds, quality=quality, stands=stands, asked=asked, source=source
    )


def _part(open_: Floats, values: Floats) -> Floats:
    """Values where requests get there; what is unknown elsewhere does not matter."""
    return np.where(open_ > 0, open_ * values, 0.0)


class _Verdict(Struct, frozen=True):
    """Of one rung's answers."""

    kept: Floats
    """[N], the probability that it stands."""
    good: Floats
    """[N], that it stands and is good."""
    promised: Mapping[str, Floats]
    """[N] by rung above: P(it answers well), now that this one was rejected."""
    source: NDArray[np.int64]


def _judged(
    name: str,
    above: Sequence[str],
    accept: Accept,
    told: Told,
    promised: Mapping[str, Floats],
    judges: Judges,
) -> _Verdict:
    known = told.p_good.get(name)
    rows = len(promised[name])
    said = np.full(rows, np.nan) if known is None else known
    recorded = ~np.isnan(said)
    spread = judges.spread.get(name, {}).get(accept.judge, FLAT)
    later = {other: _moved(promised[other], spread.above.get(other, (0.0,))) for other in above}
    p_good = np.where(recorded[:, None], said[:, None], _moved(promised[name], spread.own))
    gain = np.full(p_good.shape, np.nan)
    if all(other in spread.above for other in above):
        rate = accept.lambda_cost_usd / NANO
        ahead = [later[other] - rate * told.costs[other][:, None] for other in above]
        gain = np.max(ahead, axis=0) - p_good
    if name in told.gain:
        gain = np.where(recorded[:, None], told.gain[name][:, None], gain)
    kept = (p_good >= accept.min) | ((p_good >= 0) & (gain < accept.min_gain))
    if accept.judge == "format":
        kept |= ~recorded[:, None]  # nobody knows of a broken form
    kept &= ~np.isnan(p_good)
    share = kept.mean(axis=1)
    lost = ~kept
    after = {}
    for other in above:
        rejected = np.where(lost, later[other], 0.0).sum(axis=1) / np.maximum(lost.sum(axis=1), 1)
        after[other] = np.where(share < 1, rejected, promised[other])
    source = np.where(recorded, 0, 1 if spread is not FLAT else 2)
    return _Verdict(share, np.where(kept, p_good, 0.0).mean(axis=1), after, source)


def _moved(p: Floats, by: tuple[float, ...]) -> Floats:
    """[N, points]: probabilities whose log-odds were moved; their mean stays what it was.

    A look at the answer moves sure promises less than open ones: nobody may expect to find out
    that what is improbable is so after all.
    """
    odds = _log_odds(np.clip(p, LEAST_LOGIT, 1 - LEAST_LOGIT))
    odds += np.interp(odds, *_centring(by))
    return _chances(odds[:, None] + np.array(by))


@lru_cache(maxsize=256)
def _centring(by: tuple[float, ...]) -> tuple[Floats, Floats]:
    """(log-odds, what to add to them so that the moves leave the mean probability there)."""
    edge = float(_log_odds(np.array(1 - LEAST_LOGIT)))
    odds = np.linspace(-edge, edge, GRID)
    least, most = np.full(GRID, -max(map(abs, by))), np.full(GRID, max(map(abs, by)))
    for _ in range(HALVINGS):
        middle = (least + most) / 2
        mean = _chances((odds + middle)[:, None] + np.array(by)).mean(axis=1)
        low = mean < _chances(odds)
        least, most = np.where(low, middle, least), np.where(low, most, middle)
    return odds, (least + most) / 2


def _log_odds(p: Floats) -> Floats:
    return np.asarray(np.log(p / (1 - p)))


def _chances(odds: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-odds)))
