"""What roll-ups hold of a period, added up by key: all groupings of a report are sums of these.

Going through the buckets is most of the work, and a report asks them several questions: its rows,
the whole, what was charged by kind. Without time in it all of these are answered by one sum per
key, found once; with time in it by one statement, by the keys that are asked for.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Select, case, false, func, literal, null, or_, select

from gateway.ledger import state
from gateway.ledger.report_details import Held, by_value, plan_details, rows_us
from gateway.ledger.report_query import CHARGE_KEYS, TIME_KEYS, ReportQuery
from gateway.ledger.report_rollups import Piece, Plan, can_answer, held_us, plan, within
from gateway.ledger.rollups import (
    DAY_S,
    GROUP_KEYS,
    QUARTER_US,
    SUMS,
    WORK_KEYS,
    first_bit,
)
from gateway.ledger.tables import rollup_keys, rollups

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_K, _R = rollup_keys.c, rollups.c
_ALWAYS = ("fact", "machine", "charged", "firsts")
"""Keys that tell how to count."""
_KEYS = ("fact", *GROUP_KEYS, *WORK_KEYS, "charged", "firsts")
_AT = {name: place for place, name in enumerate(("time", *_KEYS, *SUMS, "nothing"))}
_HITS = ("cache_hits_exact", "cache_hits_semantic", "saved_nano_usd")
_TOKENS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
_COSTS = ("cost_nano_usd", "requests", "prompt_tokens", "completion_tokens")
_OF_REQUESTS = ("requests", "errors", *_HITS, *_TOKENS)
_WORK = tuple(key for key in CHARGE_KEYS if key != "backend")
Row = tuple[Any, ...]
"""In the places of _AT; time: quarters of an hour since 1970. Behind these the values of users and
tags."""
_NEVER_US = 2**62


class _Reach(Struct, frozen=True, kw_only=True):
    """What one snapshot has, unix microseconds."""

    rollups_from_us: int
    held_us: tuple[int, int]
    details: Held


class KeySums:
    """What is known of one snapshot, by pieces of the roll-ups."""

    def __init__(self) -> None:
        self._known: dict[tuple[Piece, ...], list[Row]] = {}
        self._reach: _Reach | None = None

    async def plan(self, connection: "AsyncConnection", query: ReportQuery) -> Plan:
        """How a question's period is cut into buckets and rows."""
        if self._reach is None:
            self._reach = await _reach(connection)
        reach = self._reach
        if query.dimensions and can_answer(query):
            held = reach.details
            if len(query.dimensions) > 1:  # sets are of no half hours, and as old as these
                since_us = held.halves_from_us
                held = replace(
                    held,
                    days_from_us=since_us, halves_from_us=_NEVER_US, months_from_us=since_us,
                )  # fmt: skip
            return plan_details(query, held)
        return plan(query, rollups_from_us=reach.rollups_from_us, held_us=reach.held_us)

    async def of(
        self,
        connection: "AsyncConnection",
        query: ReportQuery,
        pieces: tuple[Piece, ...],
        *,
        counts: bool = True,
    ) -> list[Row]:
        """Over all buckets of the pieces: a row per key, or per time and keys of the query.

        Args:
            counts: whether more is wanted than costs.
        """
        if any(key in TIME_KEYS for key in query.group_by):
            statement = _in_time(query, pieces, counts=counts)
            return [tuple(row) for row in await connection.execute(statement)]
        if pieces not in self._known:
            found = await connection.execute(_by_key(pieces))
            self._known[pieces] = [tuple(row) for row in found]
        return self._known[pieces]

    async def by_value(
        self,
        connection: "AsyncConnection",
        query: ReportQuery,
        dimensions: Sequence[str],
        pieces: tuple[Piece, ...],
        *,
        counts: bool = True,
    ) -> list[Row]:
        """Over buckets of the details: a row per user, or per value of the tags, and key; only of
        requests that have all of these dimensions."""
        dialect = connection.dialect.name
        facts, told = _counted(counts)
        sums = SUMS if counts else _COSTS
        rows: list[Row] = []
        for statement in by_value(
            query, dimensions, pieces, dialect, facts=facts, told=told, sums=sums
        ):
            rows += [tuple(row) for row in await connection.execute(statement)]
        return rows


async def _reach(connection: "AsyncConnection") -> _Reach:
    marks: tuple[state.Mark, ...] = (
        "rollups_from", "pruned_until", "details_from", "half_hours_from",
    )  # fmt: skip
    found = [await state.read(connection, mark) for mark in marks]
    return _Reach(
        rollups_from_us=found[0],
        held_us=await held_us(connection),
        details=Held(
            days_from_us=max(found[:3]),
            halves_from_us=max(found),
            months_from_us=_NEVER_US,
            rows_us=await rows_us(connection),
        ),
    )


def parts(
    query: ReportQuery,
) -> Iterator[tuple[tuple[str, ...], list[tuple[tuple[str, ...], int]]]]:
    """What is to be added up of requests that have users and tags: by inclusion and exclusion.

    Returns:
        Dimensions that requests have, with these of them under whose values they count, under none
        of the others, more (1) or less (-1).
    """
    fixed = {key for key in query.dimensions if key in query.filters}
    for each in _subsets(query.dimensions):
        if each and fixed <= set(each):
            shown = [some for some in _subsets(each) if fixed <= set(some)]
            yield each, [(some, (-1) ** (len(each) - len(some))) for some in shown]


def _subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for count in range(len(names) + 1):
        yield from combinations(names, count)


def without_values(rows: Sequence[Row]) -> list[Row]:
    """The same added up, as requests count that have no user, or none of the tags."""
    found: dict[Row, Row] = {}
    begin, end = _AT[SUMS[0]], _AT["nothing"]
    for row in rows:
        key, sums = row[:begin], row[begin:end]
        known = found.get(key)
        found[key] = sums if known is None else tuple(map(_plus, known, sums))
    return [(*key, *sums, None) for key, sums in found.items()]


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _by_key(pieces: tuple[Piece, ...]) -> Select[Any]:
    """Added up before the keys are looked up: there are few of them, and many buckets."""
    added = (
        select(_R.key_id, *(func.sum(_R[name]).label(name) for name in SUMS))
        .where(_R.requests != 0, or_(false(), *map(within, pieces)))
        .group_by(_R.key_id)
        .subquery()
    )
    columns = [*(_K[name] for name in _KEYS), *(added.c[name] for name in SUMS)]
    return select(literal(0), *columns, null()).join_from(
        added, rollup_keys, _K.id == added.c.key_id
    )


def _counted(counts: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The facts that are wanted, and the keys that tell how to count them."""
    return (("request", "charge"), _ALWAYS) if counts else (("charge",), ("fact", "machine"))


def _in_time(query: ReportQuery, pieces: tuple[Piece, ...], *, counts: bool) -> Select[Any]:
    facts, told = _counted(counts)
    wanted = {*told, *query.group_by, *query.filters}
    keys = [_K[name] for name in _KEYS if name in wanted]
    noon_us = case((_R.span_s == DAY_S, DAY_S * 500_000), else_=0)  # a day counts where that lies
    quarter = ((_R.bucket_us + noon_us) // QUARTER_US).label("quarter")
    shown = [_K[name] if name in wanted else null() for name in _KEYS]
    sums = [func.sum(_R[name]) if counts or name in _COSTS else null() for name in SUMS]
    return (
        select(quarter, *shown, *sums, null())
        .join_from(rollups, rollup_keys, _K.id == _R.key_id)
        .where(_K.fact.in_(facts), _R.requests != 0, or_(false(), *map(within, pieces)))
        .where(*(_K[key].in_(values) for key, values in query.filters.items()))
        .group_by(quarter, *keys)
    )


class FromSums:
    """A question's rows out of the sums: FromRows' columns in the same order, a row per key.

    Args:
        dimensions: whose values stand behind each row.
        shown: those that it counts under.
    """

    def __init__(
        self,
        query: ReportQuery,
        rows: Sequence[Row],
        dimensions: Sequence[str] = (),
        shown: Sequence[str] = (),
    ) -> None:
        self.query = query
        self._at = _AT | dict.fromkeys(query.dimensions, _AT["nothing"])
        self._at |= {name: len(_AT) + dimensions.index(name) for name in shown}
        self._rows = [row for row in rows if self._fits(row)]

    def by_request(self) -> list[Row]:
        """Each once, under who answered."""
        return self._picked("request", _OF_REQUESTS)

    def uncharged(self) -> list[Row]:
        """Requests without any charge stand under the backend that answered, if one did."""
        return self._picked("request", _OF_REQUESTS, charged=False)

    def hits_beside_charges(self) -> list[Row]:
        """Hits that cost something all the same count under who answered too."""
        width = len(self.query.group_by)
        found = self._picked("request", _HITS, charged=True)
        return [
            (*row[:width], row[width] + row[width + 1], *row[width:])
            for row in found
            if any(row[width:])
        ]

    def requests_by_charge(self) -> list[Row]:
        """Each request once per group and quarter of an hour."""
        first = first_bit((*self.query.group_by, *self.query.filters))
        return self._picked("charge", ("requests", "errors"), first=first)

    def tokens_by_charge(self) -> list[Row]:
        return self._picked("charge", _TOKENS)

    def costs(self) -> list[Row]:
        return self._picked("charge", ("machine", *_COSTS))

    def _fits(self, row: Row) -> bool:
        filters = self.query.filters.items()  # of a user or a tag there are no other rows here
        return all(row[_AT[key]] in values for key, values in filters if key in _AT)

    def _picked(
        self,
        fact: str,
        names: Sequence[str],
        *,
        charged: bool | None = None,
        first: int | None = None,
    ) -> list[Row]:
        """Group and figures of the keys of a fact.

        Args:
            charged: of requests, only those with a charge, or without one; who did the work is not
                said of them, only who answered.
            first: only keys with this bit, of requests that are their group's first.
        """
        keys = ["time" if key in TIME_KEYS else key for key in self.query.group_by]
        if charged is not None:
            keys = ["nothing" if key in _WORK else key for key in keys]
        places = [self._at[key] for key in (*keys, *names)]
        return [
            tuple(row[place] for place in places)
            for row in self._rows
            if row[_AT["fact"]] == fact
            and (charged is None or row[_AT["charged"]] == charged)
            and (first is None or row[_AT["firsts"]] & first)
        ]
