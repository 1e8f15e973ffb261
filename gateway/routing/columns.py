"""A policy on many requests at once, column by column: what `decide` says of each, only faster.

Conditions become masks over NumPy columns and targets become choices among K backends, so deciding
costs a few operations per rule and column instead of a few microseconds per row and rule. Only the
rule and the first candidate come out; a property test holds both to `decide`.
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from policies.conditions import ANY, local_time, minutes, named, time_zone
from policies.model import (
    Accept,
    BackendCard,
    BackendRange,
    BudgetState,
    Hours,
    Objective,
    Policy,
    Range,
    Route,
    Sticky,
    When,
)
from policies.objective import NANO, STEPS, limit_nano_usd
from policies.sticky import window

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Codes = NDArray[np.int64]
NOBODY = -1


def _set(value: Any) -> Any:
    """None: no limit."""
    return None if value is None else frozenset(value)


KINDS: Mapping[str, Callable[[Any], Any]] = {
    "tags": dict,
    **dict.fromkeys(("wants", "needs", "allowed"), _set),
}
"""Columns of collections: tuples in a row, and what each different one stands for."""
_QUARTER_US = 900_000_000


class Words(Struct, frozen=True):
    """A column of texts: a code per row, and what the codes stand for; None is such a value too."""

    codes: Codes
    values: list[Any]

    @classmethod
    def of(cls, values: Sequence[Any], kind: Callable[[Any], Any] | None = None) -> "Words":
        """Give each different value a code; `kind` makes of each what `where` asks about."""
        place: dict[Any, int] = {}
        codes = [place.setdefault(value, len(place)) for value in values]
        known = list(place) if kind is None else [kind(value) for value in place]
        return cls(np.array(codes, dtype=np.int64), known)

    def where(self, holds: Callable[[Any], bool]) -> Mask:
        """[N]: rows whose value passes; each different value is asked once."""
        passes = np.array([holds(value) for value in self.values], dtype=bool)
        return np.asarray(passes[self.codes])

    def where_each(self, names: Collection[str]) -> Mask:
        """[N, len(names)], of a column of sets: which names are in them."""
        passes = [[name in value for name in names] for value in self.values]
        table = np.array(passes, dtype=bool).reshape(len(self.values), len(names))
        return np.asarray(table[self.codes])


class Table(Struct, frozen=True, kw_only=True):
    """N requests as columns, and K backends."""

    cards: Mapping[str, BackendCard]
    """What does not change: tiers, capabilities, context, price. In this order, K of them."""
    words: Mapping[str, Words]
    """task, team, key, user, model, language, endpoint; as tuples: tags (of pairs), wants, needs,
    allowed (None: all)."""
    numbers: Mapping[str, Floats]
    """difficulty, prompt_tokens, turns, budget_left, prompt_tokens_bound, max_tokens (NaN: not
    asked), draw, day_spent_usd, day_requests."""
    started_us: Codes
    quality: Floats
    """[N, K]; NaN: unknown. So in the next three."""
    load: Floats
    ready: Mask
    exact: Floats
    """[N, K]: prompt tokens as counted."""
    costs: Floats
    """[N, K] nano-dollars."""
    latencies: Floats
    """[N, K] seconds."""
    warm: Codes
    """[N]: place of the backend that answered the conversation's turn before; NOBODY."""

    def __len__(self) -> int:
        return len(self.started_us)

    def rows(self, part: slice) -> "Table":
        """Some of the rows."""
        return Table(
            cards=self.cards,
            words={n: Words(column.codes[part], column.values) for n, column in self.words.items()},
            numbers={name: column[part] for name, column in self.numbers.items()},
            started_us=self.started_us[part],
            quality=self.quality[part],
            load=self.load[part],
            ready=self.ready[part],
            exact=self.exact[part],
            costs=self.costs[part],
            latencies=self.latencies[part],
            warm=self.warm[part],
        )

    @classmethod
    def of(
        cls,
        cards: Mapping[str, BackendCard],
        words: Mapping[str, Sequence[Any]],
        numbers: Mapping[str, Sequence[float | None]],
        figures: Mapping[str, Sequence[Mapping[str, float | None]]],
        *,
        started_us: Sequence[int],
        down: Sequence[Hashable],
        costs: Floats,
        latencies: Floats,
        warm: Sequence[str | None],
    ) -> "Table":
        """Columns as lists; `figures` has quality, load and exact as a dict by backend a row.

        Args:
            down: of each row, the backends that were not ready, as a tuple or set.
            warm: of each row, who answered the turn before.
            costs, latencies: [N, K], NaN: unknown.
        """
        gone = Words.of(down)
        place = {name: place for place, name in enumerate(cards)}
        return cls(
            cards=cards,
            words={name: Words.of(column, KINDS.get(name)) for name, column in words.items()},
            numbers={name: np.array(column, dtype=np.float64) for name, column in numbers.items()},
            started_us=np.array(started_us, dtype=np.int64),
            ready=~gone.where_each(cards),
            costs=costs,
            latencies=latencies,
            warm=np.array([place.get(n or "", NOBODY) for n in warm], dtype=np.int64),
            quality=by_backend(figures["quality"], cards),
            exact=by_backend(figures["exact"], cards),
            load=np.nan_to_num(by_backend(figures["load"], cards)),  # a new backend is idle
        )


def by_backend(
    column: Sequence[Mapping[str, float | None]], cards: Mapping[str, BackendCard]
) -> Floats:
    """[N, K] out of one dict a row."""
    if not any(column):
        return np.full((len(column), len(cards)), np.nan)
    found = [[row.get(name, np.nan) for row in column] for name in cards]
    return np.array(found, dtype=np.float64).reshape(len(cards), len(column)).T


class Decided(Struct, frozen=True):
    """What the policy says of each row."""

    rule: Codes
    """[N]: place of the rule; len(rules): the default."""
    winner: Codes
    """[N]: place of the first candidate among the cards; NOBODY: denied, or nobody can answer."""
    denied: Mask
    probability: Floats
    """[N]: with which the winner's arm was drawn."""
    ladder: Codes
    """[N, M]: places of a cascade's rungs, in their order; NOBODY: fewer, or no cascade."""


def decide_all(policy: Policy, table: Table) -> Decided:
    """Rule and first candidate of every row."""
    rows = len(table)
    rule = np.full(rows, len(policy.rules), dtype=np.int64)
    open_ = np.ones(rows, dtype=bool)
    for place, entry in enumerate(policy.rules):
        hit = open_ & _holds(entry.when, table)
        rule[hit] = place
        open_ &= ~hit
    winner = np.full(rows, NOBODY, dtype=np.int64)
    denied = np.zeros(rows, dtype=bool)
    probability = np.ones(rows)
    actions = (*policy.rules, policy.default)
    ladder = np.full((rows, max(len(a.cascade or ()) for a in actions)), NOBODY, dtype=np.int64)
    for place, action in enumerate(actions):
        mine = np.flatnonzero(rule == place)
        if not len(mine):
            continue
        if action.deny is not None:
            denied[mine] = True
            continue
        choice = _Choice(table, action, mine)
        winner[mine], probability[mine] = choice.winners()
        if action.cascade is not None:
            found = choice.rungs(action.cascade, action.accept or Accept())
            ladder[mine, : found.shape[1]] = found
        if policy.sticky is not None:
            winner[mine] = choice.settled(policy.sticky, winner[mine])
    return Decided(rule, winner, denied, probability, ladder)


def _holds(when: When, table: Table) -> Mask:
    masks: list[Mask] = []
    for name in ("task", "team", "key", "user", "model", "language"):
        wanted = getattr(when, name)
        if wanted is not None:
            masks.append(table.words[name].where(frozenset(wanted).__contains__))
    for name in ("difficulty", "prompt_tokens", "turns", "budget_left"):
        limits = getattr(when, name)
        if limits is not None:
            masks.append(_inside(table.numbers[name], limits))
    for name, figures in (("load", table.load), ("quality", table.quality)):
        limits = getattr(when, name)
        if limits is not None:
            places = _places(limits.backend, table.cards)
            values = figures[:, places]
            masks.append(_any(~np.isnan(values) & _inside(values, limits)))
    for tag, wanted in (when.tags or {}).items():
        masks.append(table.words["tags"].where(_has_tag(tag, wanted)))
    if when.wants is not None:
        needed = frozenset(when.wants)
        masks.append(table.words["wants"].where(lambda wants: needed <= wants))
    if when.hours is not None:
        masks.append(_in_hours(when.hours, table.started_us))
    return reduce(np.logical_and, masks, np.ones(len(table), dtype=bool))


def _any(mask: Mask) -> Mask:
    """Whether some column holds, row by row."""
    return np.asarray(mask.any(axis=1), dtype=bool)


def _has_tag(tag: str, wanted: Sequence[str]) -> Callable[[Any], bool]:
    return lambda tags: tags.get(tag) in wanted


def _inside(values: Floats, limits: Range | BackendRange) -> Mask:
    inside = np.ones(values.shape, dtype=bool)
    if limits.min is not None:
        inside &= values >= limits.min
    if limits.max is not None:
        inside &= values < limits.max
    return inside


def _places(target: str, cards: Mapping[str, BackendCard]) -> list[int]:
    order = {name: place for place, name in enumerate(cards)}
    return [order[card.name] for card in named(target, cards)]


def _in_hours(hours: Hours, started_us: Codes) -> Mask:
    """Offsets from UTC change at quarters of an hour at most: one look-up for each."""
    zone, start, end = time_zone(hours.tz), minutes(hours.from_), minutes(hours.to)
    if zone is None or start is None or end is None:
        return np.zeros(len(started_us), dtype=bool)
    quarters, back = np.unique(started_us // _QUARTER_US, return_inverse=True)
    locals_ = [
        local_time(datetime.fromtimestamp(int(q) * _QUARTER_US / 1e6, UTC), zone) for q in quarters
    ]
    minute = np.array([at.hour * 60 + at.minute for at in locals_], dtype=np.int64)[back]
    minute += (started_us % _QUARTER_US) // 60_000_000
    today = np.array([at.weekday() for at in locals_], dtype=np.int64)[back]
    if start < end:
        inside, day = (start <= minute) & (minute < end), today
    else:
        evening = minute >= start
        inside = evening | (minute < end)
        day = np.where(evening, today, (today - 1) % 7)
    if hours.days is not None:
        names = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
        allowed = np.array([name in hours.days for name in names])
        inside = inside & allowed[day]
    return np.asarray(inside)


class _Choice:
    """The first candidates of the rows on which one action decides."""

    def __init__(self, table: Table, action: Route, rows: Codes) -> None:
        self._table = table
        self._action = action
        self._rows = rows
        self._cards = list(table.cards.values())
        self._ready = table.ready[rows]
        self._load = table.load[rows]
        usable = [self._can(place) for place in range(len(self._cards))]
        self._usable = np.array(usable, dtype=bool).reshape(len(usable), len(rows)).T
        price = [card.usd_per_mtok or 0.0 for card in self._cards]
        self._price = np.broadcast_to(np.array(price), self._usable.shape)

    def _can(self, k: int) -> Mask:
        """Whether backend k can answer each row; see policies.candidates."""
        card, table, rows = self._cards[k], self._table, self._rows
        words, numbers = table.words, table.numbers
        usable = words["endpoint"].where(card.endpoints.__contains__)
        usable = usable & words["allowed"].where(lambda a: a is None or card.name in a)
        usable = (usable & words["needs"].where(lambda needs: needs <= card.accepts))[rows]
        if card.context_tokens is not None:
            asked = numbers["max_tokens"][rows]
            if self._action.max_tokens is not None:
                asked = np.fmin(asked, self._action.max_tokens)
            answer = np.maximum(1, np.where(np.isnan(asked), 1, asked))
            exact = table.exact[rows, k]
            prompt = np.where(np.isnan(exact), numbers["prompt_tokens_bound"][rows], exact)
            usable = usable & (prompt + answer <= card.context_tokens)
        return np.asarray(usable)

    def winners(self) -> tuple[Codes, Floats]:
        """(place of the first candidate, probability) of each row."""
        action = self._action
        probability = np.ones(len(self._rows))
        winner = np.full(len(self._rows), NOBODY, dtype=np.int64)
        firsts: list[tuple[Mask | None, str | Objective]] = []
        if action.objective is not None:
            firsts.append((None, action.objective))
        elif action.cascade is not None:
            winner = self.rungs(action.cascade, action.accept or Accept())[:, 0]
            firsts += [(None, target) for target in action.cascade]
        elif action.route is not None:
            firsts.append((None, action.route))
        else:
            arms, probability = self._draw(dict(action.split or {}))
            firsts += [(arms == place, target) for place, target in enumerate(action.split or {})]
        steps = [*firsts, *((None, target) for target in action.fallbacks)]
        for ready in (True, False):
            state = self._usable & (self._ready == ready)
            for mask, target in steps:
                todo = winner == NOBODY
                found = self._best(target, state)
                winner = np.where(todo if mask is None else todo & mask, found, winner)
        embeddings = self._table.words["endpoint"].where("embeddings".__eq__)[self._rows]
        for ready in (True, False):
            left = (winner == NOBODY) & embeddings
            found = self._best(ANY, self._usable & (self._ready == ready))
            winner = np.where(left, found, winner)
        return winner, probability

    def settled(self, sticky: Sticky, winner: Codes) -> Codes:
        """The winners, after conversations stayed where they are warm; see policies.sticky."""
        action, table, rows = self._action, self._table, self._rows
        targets = action.objective.among if action.objective else [action.route or ""]
        warm = table.warm[rows]
        if (action.route is None and action.objective is None) or not (warm != NOBODY).any():
            return winner
        named = [
            k for target in (*targets, *action.fallbacks) for k in _places(target, table.cards)
        ]
        in_order = np.zeros(self._usable.shape, dtype=bool)
        in_order[:, named] = self._usable[:, named]
        in_order |= self._usable & ~in_order.any(axis=1, keepdims=True)  # embeddings: anybody
        there, at, other = np.arange(len(rows)), np.maximum(warm, 0), np.maximum(winner, 0)
        can = (warm != NOBODY) & (winner != NOBODY) & (warm != winner)
        can &= in_order[there, at] & self._ready[there, at]
        windows = np.array([window(card) for card in self._cards])
        narrow = windows[other] < windows[at]
        narrow &= windows[other] < table.numbers["prompt_tokens"][rows] * sticky.headroom
        if action.objective is not None:
            return np.where(can & narrow, warm, winner)
        quality, costs = table.quality[rows], table.costs[rows]
        gain = np.nan_to_num(quality[there, other] - quality[there, at])
        saved = np.nan_to_num(costs[there, at] - costs[there, other])
        pays = (gain >= sticky.min_gain) | ((saved > 0) & (gain > -sticky.min_gain))
        return np.where(can & (narrow | ~pays), warm, winner)

    def _best(self, target: str | Objective, state: Mask) -> Codes:
        """The first of the target's backends in `state`, NOBODY without one."""
        if isinstance(target, Objective):
            return self._by_objective(target, state)
        names = _places(target, self._table.cards)
        keys = [self._price, self._load] if target == ANY else [self._load]
        return _first(state, keys, names)

    def rungs(self, targets: Sequence[str], accept: Accept) -> Codes:
        """[rows, len(targets)]: a cascade's backends, each once, then NOBODY; see policies.cascade.

        All NOBODY where none of them is ready.
        """
        shape = (len(self._rows), len(targets))
        found = np.full(shape, NOBODY, dtype=np.int64)
        if not self._cards:
            return found
        for place, target in enumerate(targets):
            best = self._best(target, self._usable & self._ready)
            seen = (found == best[:, None]).any(axis=1)
            found[:, place] = np.where(seen, NOBODY, best)
        each, rate = np.arange(shape[0]), accept.skip_lambda_cost_usd
        quality, costs = self._table.quality[self._rows], self._table.costs[self._rows]
        above: list[tuple[Floats, Floats]] = []
        for place in reversed(range(shape[1])):
            names = found[:, place]
            known, cost = (t[each, np.maximum(names, 0)] for t in (quality, costs))
            asked = names != NOBODY
            for other, dearer in above:
                asked &= ~(other - known >= accept.skip_gain)
                if rate is not None:
                    asked &= ~(other - known >= rate * (dearer - cost) / NANO)
            found[:, place] = np.where(asked, names, NOBODY)
            above.append((np.where(asked, known, np.nan), cost))
        order = np.argsort(found == NOBODY, axis=1, kind="stable")
        return np.asarray(np.take_along_axis(found, order, 1))

    def _by_objective(self, goal: Objective, state: Mask) -> Codes:
        table, rows = self._table, self._rows
        cards = self._table.cards
        names = sorted({k for target in goal.among for k in _places(target, cards)})
        quality, cost = table.quality[rows], table.costs[rows]
        price = np.where(np.isnan(cost), np.inf, cost)
        known = np.where(np.isnan(quality), -1.0, quality)
        if goal.minimise is not None:
            good = known >= (goal.min_quality or 0.0)
            second = np.where(good, price, -_levels(known))
            third = np.where(good, -known, price)
            return _first(state, [~good, second, third, self._load], names)
        within = price <= self._limits(goal)[:, None]
        merit = _merits(quality, cost, table.latencies[rows], goal)
        second = np.where(within, -_levels(merit), price)
        third = np.where(within, price, 0.0)
        return _first(state, [~within, second, third, self._load], names)

    def _limits(self, goal: Objective) -> Floats:
        """[rows] nano-dollars that one answer may cost."""
        numbers = self._table.numbers
        if goal.max_cost_usd is None:
            return np.full(len(self._rows), np.inf)
        if goal.per == "request":
            return np.full(len(self._rows), round(goal.max_cost_usd * NANO), dtype=np.float64)
        found = [
            limit_nano_usd(
                goal,
                BudgetState(day_spent_usd=spent, day_requests=int(requests)),
                datetime.fromtimestamp(us / 1e6, UTC),
            )
            for spent, requests, us in zip(
                numbers["day_spent_usd"][self._rows].tolist(),
                numbers["day_requests"][self._rows].tolist(),
                self._table.started_us[self._rows].tolist(),
                strict=True,
            )
        ]
        return np.array(found, dtype=np.float64)

    def _draw(self, weights: dict[str, float]) -> tuple[Codes, Floats]:
        """(place of the arm, its share) of each row, with the float operations of `decide`."""
        places = [_places(target, self._table.cards) for target in weights]
        usable = np.stack([_any(self._usable[:, names]) for names in places], axis=1)
        ready = self._usable & self._ready
        alive = np.stack([_any(ready[:, names]) for names in places], axis=1)
        arms = np.where(alive.any(1, keepdims=True), alive, usable)
        arms = np.where(arms.any(1, keepdims=True), arms, True)
        shares = np.where(arms, np.array(list(weights.values())), 0.0)
        total = reduce(np.add, shares.T, np.zeros(len(arms)))
        point = self._table.numbers["draw"][self._rows] * total
        chosen = np.full(len(arms), NOBODY, dtype=np.int64)
        for place, share in enumerate(shares.T):
            point = point - share
            chosen = np.where((chosen == NOBODY) & arms[:, place] & (point < 0), place, chosen)
        last = arms.shape[1] - 1 - np.argmax(arms[:, ::-1], axis=1)
        chosen = np.where(chosen == NOBODY, last, chosen)
        return chosen, np.take_along_axis(shares, chosen[:, None], 1)[:, 0] / total


def _first(state: Mask, keys: Sequence[NDArray[Any]], names: Sequence[int]) -> Codes:
    """The place with the least keys, compared one after the other, among `names` in `state`."""
    if not names:
        return np.full(len(state), NOBODY, dtype=np.int64)
    best = state[:, names]
    any_ = best.any(axis=1)
    for key in keys:
        values = np.where(best, key[:, names].astype(np.float64), np.inf)
        best = best & (values == values.min(axis=1, keepdims=True))
    chosen = np.array(names, dtype=np.int64)[best.argmax(axis=1)]
    return np.where(any_, chosen, NOBODY)


def _levels(merit: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(np.rint(merit * STEPS))


def _merits(quality: Floats, cost: Floats, latency: Floats, goal: Objective) -> Floats:
    merit = quality.copy()
    if goal.lambda_cost_usd:
        merit -= goal.lambda_cost_usd * cost / NANO
    if goal.mu_latency_s:
        merit -= goal.mu_latency_s * np.where(np.isnan(latency), 0.0, latency)
    return np.where(np.isfinite(merit), merit, -np.inf)
