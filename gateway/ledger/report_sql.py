"""The statements of cost reports: group, count and sum in the database."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, Text, and_, case, cast, exists, func, null, or_, select

from gateway.ledger.report_query import CHARGE_KEYS, TAG, TIME_KEYS, ReportQuery
from gateway.ledger.tables import charges, requests

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

BUCKET_US = 15 * 60 * 1_000_000
"""Days and hours of any time zone consist of whole quarters of an hour."""
TOKENS = ("prompt_tokens", "cached_prompt_tokens", "completion_tokens")
HITS = ("cache_hits_exact", "cache_hits_semantic", "saved")
COUNTS = ("requests", "errors", *HITS)
_HIT = requests.c.cache.in_(("exact", "semantic"))


def _count(condition: "ColumnElement[bool]") -> "ColumnElement[Any]":
    return func.sum(case((condition, 1), else_=0))


def _hit_sums() -> list["ColumnElement[Any]"]:
    return [
        _count(requests.c.cache == "exact"),
        _count(requests.c.cache == "semantic"),
        func.sum(requests.c.saved_nano_usd),
    ]


def _request_sums() -> list["ColumnElement[Any]"]:
    return [
        func.count(),
        _count(requests.c.outcome == "error"),
        *_hit_sums(),
        *(func.sum(requests.c[name]) for name in TOKENS),
    ]


class FromRows:
    """A question's statements over `requests` and `charges`.

    Args:
        periods: instead of the query's, unix microseconds, half-open, apart from each other.
    """

    def __init__(self, query: ReportQuery, periods: Sequence[tuple[int, int]] = ()) -> None:
        self.query = query
        self._periods = periods or ((query.since_us, query.until_us),)

    def by_request(self) -> Select[Any]:
        """Each once, under who answered."""
        keys = _keys(self.query, requests.c.started_us, charged=False)
        return _grouped(keys, _request_sums()).where(
            self._within(requests.c.started_us), *_filters(self.query, charged=False)
        )

    def uncharged(self) -> Select[Any]:
        """Requests without any charge stand under the backend that answered, if one did."""
        keys = _keys(self.query, requests.c.started_us, charged=False)
        booked = exists().where(charges.c.request_id == requests.c.request_id)
        return _grouped(keys, _request_sums()).where(
            self._within(requests.c.started_us), *_filters(self.query, charged=False), ~booked
        )

    def hits_beside_charges(self) -> Select[Any]:
        """Hits that cost something (an encoder's work) count under who answered too."""
        keys = _keys(self.query, requests.c.started_us, charged=False)
        booked = exists().where(charges.c.request_id == requests.c.request_id)
        filters = self.query.filters
        count: ColumnElement[int] = func.count()
        if not set(self.query.group_by) & set(CHARGE_KEYS):  # one group: is it there by a charge?
            asked = [charges.c[key].in_(filters[key]) for key in CHARGE_KEYS if key in filters]
            if any(len(filters[key]) > 1 for key in CHARGE_KEYS if key in filters):
                count = _count(~booked.where(*asked))
        return _grouped(keys, [count, *_hit_sums()]).where(
            self._within(requests.c.started_us), *_filters(self.query, charged=False), booked, _HIT
        )

    def requests_by_charge(self) -> Select[Any]:
        """Each request once per group and quarter of an hour, as roll-ups count."""
        keys = _keys(self.query, charges.c.at_us)
        each = (
            select(
                *(key.label(f"g{index}") for index, key in enumerate(keys)),
                charges.c.request_id,
                (charges.c.at_us // BUCKET_US).label("quarter"),
                requests.c.outcome,
            )
            .join_from(charges, requests, requests.c.request_id == charges.c.request_id)
            .where(self._within(charges.c.at_us), *_filters(self.query))
            .distinct()
            .subquery()
        )
        columns = [each.c[f"g{index}"] for index in range(len(keys))]
        return (
            select(*columns, func.count(), _count(each.c.outcome == "error"))
            .select_from(each)
            .group_by(*columns)
        )

    def tokens_by_charge(self) -> Select[Any]:
        keys = _keys(self.query, charges.c.at_us)
        sums = [func.sum(charges.c[name]) for name in TOKENS]
        return (
            _grouped(keys, sums)
            .join_from(charges, requests, requests.c.request_id == charges.c.request_id)
            .where(self._within(charges.c.at_us), *_filters(self.query))
        )

    def costs(self) -> Select[Any]:
        keys = _keys(self.query, charges.c.at_us)
        c = charges.c
        sums = [func.sum(c.cost_nano_usd), func.count()]
        sums += [func.sum(c.prompt_tokens), func.sum(c.completion_tokens)]
        statement = _grouped([*keys, c.machine], sums)
        if any(
            key not in (*CHARGE_KEYS, *TIME_KEYS)
            for key in (*self.query.group_by, *self.query.filters)
        ):
            statement = statement.join_from(
                charges, requests, requests.c.request_id == charges.c.request_id
            )
        return statement.where(self._within(charges.c.at_us), *_filters(self.query))

    def _within(self, at: "ColumnElement[int]") -> "ColumnElement[bool]":
        return or_(*(and_(at >= begin, at < end) for begin, end in self._periods))


def _grouped(
    keys: Sequence["ColumnElement[Any]"], sums: Sequence["ColumnElement[Any]"]
) -> Select[Any]:
    """Grouped by label: the same expression with its own parameters is another to PostgreSQL."""
    labelled = [key.label(f"g{index}") for index, key in enumerate(keys)]
    statement = select(*labelled, *sums)
    return statement.group_by(*(f"g{index}" for index in range(len(keys)))) if keys else statement


def _keys(
    query: ReportQuery, time_us: "ColumnElement[int]", *, charged: bool = True
) -> list["ColumnElement[Any]"]:
    """The group's columns; days and hours as the quarter of an hour since 1970."""
    return [
        time_us // BUCKET_US if key in TIME_KEYS else _column(key, charged=charged)
        for key in query.group_by
    ]


def _column(key: str, *, charged: bool) -> "ColumnElement[Any]":
    if key.startswith(TAG):
        tag: ColumnElement[Any] = requests.c.tags[key.removeprefix(TAG)].as_string()
        return tag
    if key not in CHARGE_KEYS:
        return requests.c[key]
    if charged:
        return charges.c[key]
    return requests.c.backend if key == "backend" else cast(null(), Text)


def _filters(query: ReportQuery, *, charged: bool = True) -> list["ColumnElement[bool]"]:
    return [_column(key, charged=charged).in_(values) for key, values in query.filters.items()]
