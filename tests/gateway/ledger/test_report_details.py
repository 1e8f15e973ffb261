"""Which buckets of the details answer a period."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.ledger.report_details import Held, plan_details
from gateway.ledger.report_query import parse_query
from gateway.ledger.rollups import DAY_S, DAY_US, HALF_S, MONTH_S

SECOND_US = 1_000_000
_FAR = 2**61


@pytest.mark.parametrize(
    ("asked", "spans", "longest_s"),
    [
        ({"group_by": "user"}, {HALF_S, DAY_S}, HALF_S),
        ({"group_by": "day,user", "tz": "Europe/Berlin"}, {HALF_S, DAY_S}, HALF_S),
        ({"group_by": "day,user", "tz": "Asia/Kolkata"}, {HALF_S, DAY_S}, HALF_S),
        ({"group_by": "hour,user", "tz": "America/New_York"}, {HALF_S}, HALF_S),
        ({"group_by": "hour", "filters": {"user": ["a"]}, "tz": "Asia/Kolkata"}, {HALF_S}, HALF_S),
        ({"group_by": "hour,user", "tz": "Asia/Kathmandu"}, set(), 60 * DAY_S),
    ],
)  # fmt: skip
def test_details_leave_less_than_half_an_hour_to_the_rows(
    asked: dict[str, Any], spans: set[int], longest_s: int
) -> None:
    """A month that begins and ends within days; older days have no half hours, so their rows are
    read where they are cut."""
    now = datetime(2026, 11, 20, 14, 34, tzinfo=UTC)
    query = parse_query(since="2026-10-02T03:04:05Z", now=now, **asked)
    oldest, newest = query.since_us - DAY_US, query.until_us + DAY_US
    held = Held(days_from_us=0, halves_from_us=0, months_from_us=_FAR, rows_us=(oldest, newest))
    found = plan_details(query, held)
    assert {piece.span_s for piece in (*found.buckets, *found.moved, *found.spare)} == spans
    rows = (*found.rows, *found.moved_rows, *found.spare_rows)
    assert max(end - begin for begin, end in rows) < longest_s * SECOND_US
    live = replace(held, rows_us=(query.since_us + DAY_US, query.until_us - DAY_US // 24))
    if spans:
        assert plan_details(query, live).rows == (), "all rows there are lie in whole buckets"
        old = plan_details(query, replace(held, halves_from_us=query.until_us + DAY_US))
        assert {piece.span_s for piece in old.buckets} == spans - {HALF_S}
        assert old.moved == old.spare == ()


@pytest.mark.parametrize(
    ("asked", "months", "spare"),
    [
        ({"since": "2026-10-01", "until": "2026-11-01"}, [10], 0),
        ({"since": "2026-10-04", "until": "2026-12-01"}, [10, 11], 3),
        ({"since": "2026-10-20", "until": "2026-11-11"}, [], 0),
        ({}, [10, 11], 0),
        ({"group_by": ["day", "user", "tag:env"]}, [], 0),
        ({"group_by": "user"}, [], 0),
    ],
)
def test_sets_are_read_by_months_where_most_of_one_is_asked_for(
    asked: dict[str, Any], months: list[int], spare: int
) -> None:
    """Rows are of October and of November up to the 20th; each day that is asked for counts once,
    no other."""
    oldest, newest = (
        round(datetime(2026, *at, tzinfo=UTC).timestamp()) * SECOND_US for at in ((10, 1), (11, 21))
    )
    now = datetime(2026, 11, 21, tzinfo=UTC)
    query = parse_query(now=now, **{"group_by": "user,tag:env", **asked})
    months_from_us = oldest if len(query.dimensions) > 1 else _FAR
    held = Held(
        days_from_us=oldest,
        halves_from_us=_FAR,
        months_from_us=months_from_us,
        rows_us=(oldest, newest),
    )

    def months_of(held: Held) -> list[int]:
        pieces = plan_details(query, held).buckets
        begins = [piece.from_us // SECOND_US for piece in pieces if piece.span_s == MONTH_S]
        return [datetime.fromtimestamp(at, UTC).month for at in begins]

    found = plan_details(query, held)
    assert months_of(held) == months
    assert months_of(replace(held, months_from_us=months_from_us + 1)) == [*{*months} - {10}]
    counted = Counter(
        day_us
        for piece in found.buckets
        for day_us in range(piece.from_us, min(piece.until_us, newest), DAY_US)
    )
    taken = [day_us for one in found.spare for day_us in range(one.from_us, one.until_us, DAY_US)]
    assert len(taken) == spare
    counted.subtract(taken)
    wanted = range(max(query.since_us, oldest), min(query.until_us, newest), DAY_US)
    assert +counted == Counter(wanted)
    assert min(counted.values()) >= 0
