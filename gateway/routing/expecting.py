"""What a policy's decisions on past requests are expected to cost, take and be worth."""

from collections.abc import Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from gateway.dispatch.cascade_costs import JUDGE_TOKENS, judging_backend
from gateway.ledger.pricing import CostEstimator
from gateway.routing.climbs import SOURCES, Told, climb
from gateway.routing.columns import NOBODY, Codes, Decided, Table
from gateway.routing.judges import Judges
from gateway.routing.past import Past, Rung, answer_tokens
from policies.model import Accept, BackendCard, Policy
from policies.objective import NANO

Floats = NDArray[np.float64]
NO_CASCADE = -1
RECORDED = SOURCES.index("recorded")
CERTAIN = 1.0 - 1e-9
_MTOK = 1_000_000


class Expected(Struct, frozen=True, kw_only=True):
    """N rows over K backends."""

    cost: Floats
    """[N] nano-dollars; NaN: unknown. So in the next two."""
    quality: Floats
    """[N]"""
    seconds: Floats
    """[N]"""
    shares: Floats
    """[N, K], the probability that this backend's answer is the one given."""
    stands: Codes
    """[N], whose answer is given; NOBODY where only a judge could have said."""
    asked: Floats
    """[N], backends that answer."""
    source: Codes
    """[N], where a cascade's verdicts come from, of climbs.SOURCES; NO_CASCADE."""


def picked(values: Floats, winner: Codes) -> Floats:
    """[N]: each row's value for its winner; NaN where nobody won."""
    if not values.shape[1]:
        return np.full(len(winner), np.nan)
    found = values[np.arange(len(winner)), np.maximum(winner, 0)]
    return np.where(winner == NOBODY, np.nan, found)


def rungs_of(past: Past) -> Codes:
    """[N]: how many rungs of a cascade answered then; 0: there was none."""
    counts = np.zeros(len(past), dtype=np.int64)
    for row, rungs in past.rungs.items():
        counts[row] = len(rungs)
    return counts


class Expecting:
    """Knows the past's verdicts, and what judges make of answers."""

    def __init__(
        self,
        past: Past,
        cards: Mapping[str, BackendCard],
        estimator: CostEstimator,
        judges: Judges,
    ) -> None:
        self._past = past
        self._cards = cards
        self._estimator = estimator
        self._judges = judges
        self._verdicts: dict[str, tuple[dict[str, Floats], dict[str, Floats]]] = {}

    def of(self, policy: Policy, table: Table, found: Decided, start: int = 0) -> Expected:
        """Of decisions on the table's rows, which begin at row `start` of the past."""
        rows, winner = len(table), found.winner
        shares = np.zeros((rows, len(table.cards)))
        served = np.flatnonzero(winner != NOBODY)
        shares[served, winner[served]] = 1.0
        expected = Expected(
            cost=picked(table.costs, winner),
            quality=picked(table.quality, winner),
            seconds=picked(table.latencies, winner),
            shares=shares,
            stands=winner.copy(),
            asked=(winner != NOBODY).astype(np.float64),
            source=np.full(rows, NO_CASCADE, dtype=np.int64),
        )
        actions = (*policy.rules, policy.default)
        for place, action in enumerate(actions):
            if action.cascade is None:
                continue
            mine = np.flatnonzero((found.rule == place) & (found.ladder[:, 1:] != NOBODY).any(1))
            for ladder in np.unique(found.ladder[mine], axis=0) if len(mine) else ():
                here = mine[(found.ladder[mine] == ladder).all(axis=1)]
                names = [k for k in ladder.tolist() if k != NOBODY]
                self._climb(expected, table, names, action.accept or Accept(), here, start)
        return expected

    def _climb(
        self,
        expected: Expected,
        table: Table,
        places: Sequence[int],
        accept: Accept,
        rows: Codes,
        start: int,
    ) -> None:
        names = list(self._cards)
        ladder = [names[k] for k in places]
        p_good, gain = self._known(accept.judge)
        told = Told(
            quality={names[k]: table.quality[rows, k] for k in places},
            costs={names[k]: table.costs[rows, k] for k in places},
            seconds={names[k]: table.latencies[rows, k] for k in places},
            looks=self._looks(table, accept, rows, places, start),
            p_good={name: column[rows + start] for name, column in p_good.items()},
            gain={
                name: column[rows + start]
                - accept.lambda_cost_usd
                / NANO
                * _least_cost(table, places, names.index(name), rows)
                for name, column in gain.items()
                if name in ladder
            },
        )
        climbed = climb(ladder, accept, told, self._judges)
        expected.cost[rows], expected.seconds[rows] = climbed.cost, climbed.seconds
        expected.quality[rows], expected.asked[rows] = climbed.quality, climbed.asked
        expected.source[rows] = climbed.source
        expected.shares[rows] = 0.0
        for k in places:
            expected.shares[rows, k] = climbed.stands.get(names[k], 0.0)
        best = expected.shares[rows].argmax(axis=1)
        sure = (expected.shares[rows, best] >= CERTAIN) & (climbed.source == RECORDED)
        expected.stands[rows] = np.where(sure, best, NOBODY)

    def _known(self, judge: str) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """(P(good), gain) [N] by backend, as that judge said then; a broken form counts, too."""
        if judge not in self._verdicts:
            size = len(self._past)
            p_good: dict[str, Floats] = {}
            gain: dict[str, Floats] = {}
            for row, rungs in self._past.rungs.items():
                for rung in rungs:
                    if not _counts(rung, judge):
                        continue
                    said = p_good.setdefault(rung.backend, np.full(size, np.nan))
                    more = gain.setdefault(rung.backend, np.full(size, np.nan))
                    said[row] = -1.0 if rung.p_good is None else rung.p_good
                    more[row] = np.nan if rung.gain is None else rung.gain
            self._verdicts[judge] = p_good, gain
        return self._verdicts[judge]

    def _looks(
        self, table: Table, accept: Accept, rows: Codes, places: Sequence[int], start: int
    ) -> dict[str, Floats]:
        """Of a judge backend: it reads question, answer and what it is to do, and says a word."""
        judge = judging_backend(accept)
        if judge is None:
            return {}
        each = self._estimator.expected(judge, _MTOK, 0) / _MTOK
        word = self._estimator.expected(judge, 0, _MTOK) / _MTOK
        names = list(self._cards)
        answers = answer_tokens(self._past, self._cards)[rows + start]
        prompt = table.numbers["prompt_tokens"][rows] + JUDGE_TOKENS
        return {names[k]: (prompt + answers[:, k]) * each + word for k in places}


def _least_cost(table: Table, places: Sequence[int], k: int, rows: Codes) -> Floats:
    """[rows] nano-dollars of the cheapest rung above backend `k`: which one a recorded gain is of,
    nobody knows; 0 where there is none."""
    above = list(places[places.index(k) + 1 :])
    return table.costs[rows][:, above].min(axis=1) if above else np.zeros(len(rows))


def _counts(rung: Rung, judge: str) -> bool:
    """Whether a verdict is what this judge says; form is looked at before every judge."""
    return rung.judge == judge or (rung.judge == "format" and rung.p_good == 0.0)
