"""Roll-ups are the rows' sums, whatever is written in whichever order."""

import asyncio
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check, state
from gateway.ledger.database import open_engine
from gateway.ledger.records import Settlement
from gateway.ledger.report_query import parse_query
from gateway.ledger.report_rollups import Piece, batches, can_answer, plan
from gateway.ledger.reports import cost_rows, costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.rollups import (
    DAY_S,
    DAY_US,
    HALF_PAST_S,
    HALF_S,
    HOUR_S,
    QUARTER_S,
    bucket_us,
)
from gateway.ledger.tables import metadata, rollup_details, rollups
from gateway.settings import Settings
from tests.gateway.ledger.samples import NOW, charge, settlement

SECOND_US = 1_000_000
_FAR = 2**61
_KINDS = ("answer", "retry", "judge")
_ZONES = ("UTC", "Europe/Berlin", "Asia/Kathmandu", "Asia/Tokyo", "Pacific/Kiritimati",
          "America/New_York", "Asia/Kolkata", "America/St_Johns")  # fmt: skip
_DAYS, _MONTHS = 200_000, 5_000_000
"""How far from NOW rows may lie, seconds."""
_MOMENTS = st.one_of(
    *(st.integers(-reach - 50_000, reach + 50_000) for reach in (_DAYS, _MONTHS))
).map(lambda s: datetime.fromtimestamp(NOW + s - 0.25, UTC).isoformat())
_TAG_NAMES = st.sampled_from(["env", "user", "a.b c"])


@st.composite
def _charges(draw: st.DrawFn, name: str, reach: int) -> tuple[Any, ...]:
    machines = st.sampled_from([("small", "local", "cpu"), ("nano", "local", "cpu"), ("out",)])
    booked = []
    for seq in range(draw(st.integers(0, 4))):
        backend, machine, kind = (*draw(machines), None, None)[:3]
        booked.append(
            charge(
                name,
                seq,
                kind=draw(st.sampled_from(_KINDS)),
                backend=backend,
                machine=machine,
                machine_type=kind,
                at=NOW + draw(st.integers(-reach, reach)),
                cost_nano_usd=draw(st.integers(-(10**12), 10**12)),
            )
        )
    return tuple(booked)


@st.composite
def _rows(draw: st.DrawFn) -> list[Settlement]:
    names = [f"r{index}" for index in range(draw(st.integers(1, 8)))]
    reach = draw(st.sampled_from([_DAYS, _MONTHS]))
    verdicts = {name: draw(st.sampled_from(["miss", "exact", "semantic", "off"])) for name in names}
    return [
        settlement(
            name,
            charges=draw(_charges(name, reach)),
            team=draw(st.sampled_from(["ads", "search"])),
            user=draw(st.sampled_from(["ann", "bob", None])),
            tags=draw(st.dictionaries(_TAG_NAMES, st.sampled_from(["a", "b"]))),
            model=draw(st.sampled_from(["auto", "small"])),
            outcome=draw(st.sampled_from(["ok", "error"])),
            cache=verdicts[name],
            backend=draw(st.sampled_from(["small", "nano", None])),
            started_at=NOW + draw(st.integers(-reach, reach)),
            saved_nano_usd=7 if verdicts[name] in ("exact", "semantic") else 0,
        )
        for name in names
    ]


async def _emptied(url: str) -> AsyncEngine:
    engine = open_engine(url)
    async with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            await connection.execute(delete(table))
    return engine


async def _same_by_rows(engine: AsyncEngine, **asked: Any) -> Any:
    """The report by roll-ups, after comparing it with the one that reads every row."""
    now = datetime.fromtimestamp(NOW + _MONTHS + 100_000, UTC)
    found = await costs_report(engine, Settings(), now=now, **asked)
    async with engine.begin() as connection:
        await state.write(connection, "rollups_from", _FAR)
    by_rows = await costs_report(engine, Settings(), now=now, **asked)
    async with engine.begin() as connection:
        await state.write(connection, "rollups_from", 0)
    key = lambda row: str(sorted(row.items(), key=str))  # noqa: E731
    assert sorted(found.pop("rows"), key=key) == sorted(by_rows.pop("rows"), key=key)
    assert found == by_rows
    return found


_QUESTIONS: list[dict[str, Any]] = [
    {},
    {"group_by": "team"},
    {"group_by": "backend"},
    {"group_by": "kind,team"},
    {"group_by": "backend,machine,kind"},
    {"group_by": "day,model"},
    {"group_by": "day,backend", "tz": "Asia/Kolkata"},
    {"group_by": "day", "tz": "Europe/Berlin", "idle_by": "groups"},
    {"group_by": "day,kind", "tz": "America/New_York"},
    {"group_by": "team,day", "tz": "Pacific/Auckland", "filters": {"backend": ["small"]}},
    {"group_by": "day,machine", "tz": "Asia/Kathmandu", "since": "2026-11-19T07:52:11Z"},
    {"group_by": "hour,team", "tz": "Asia/Kolkata"},
    {"group_by": "hour", "tz": "Europe/Berlin"},
    {"group_by": "hour,kind", "tz": "Asia/Kathmandu"},
    {"group_by": "machine_type", "since": "2026-11-21T07:52:11Z", "until": "2026-11-22T01:00:01Z"},
    {"group_by": "team", "filters": {"backend": ["small"]}},
    {"group_by": "team,backend", "filters": {"backend": ["small", "nano"], "team": ["ads"]}},
    {"group_by": "team", "filters": {"kind": ["answer", "retry"]}},
    {"group_by": "user,backend"},
    {"group_by": "user,model", "idle_by": "groups"},
    {"group_by": "tag:env"},
    {"group_by": "tag:env,user"},
    {"group_by": "user,day,kind", "filters": {"tag:env": ["prod", "b"]}, "tz": "Europe/Berlin"},
    {"group_by": "tag:env,backend,tag:user,user", "since": "2026-11-20T07:52:11Z"},
    {"group_by": "team", "filters": {"tag:env": ["test", "a"], "tag:user": ["x", "b"]}},
    {"group_by": "tag:user,kind", "since": "2026-11-20T07:52:11Z"},
    {"group_by": "day,tag:env", "tz": "Europe/Berlin", "until": "2026-11-22T03:14:15Z"},
    {"group_by": "hour,tag:env", "tz": "Europe/Berlin"},
    {"group_by": "team", "filters": {"tag:a.b c": ["a"]}, "since": "2026-11-19T23:46:00Z"},
    {"group_by": "user,backend", "filters": {"user": ["ann"], "backend": ["small", "nano"]}},
]


@st.composite
def _detailed(draw: st.DrawFn) -> dict[str, Any]:
    """A question about users and tags, of any period, by UTC's or local days and hours."""
    named = st.sampled_from(["user", "tag:env", "tag:user", "tag:a.b c", "tag:none"])
    dimensions = draw(st.lists(named, min_size=1, max_size=3, unique=True))
    others = draw(st.lists(st.sampled_from(["team", "model", "backend", "machine", "kind"])))
    group_by = [*dict.fromkeys([*others, *draw(st.sampled_from([["day"], ["hour"], []]))])]
    filters = {}
    for dimension in dimensions:
        if filtered := draw(st.booleans()):
            values = ["ann", "nobody"] if dimension == "user" else ["a", "c"]
            filters[dimension] = draw(st.lists(st.sampled_from(values), min_size=1, unique=True))
        if draw(st.booleans()) or not filtered:
            group_by.insert(0, dimension)
    if draw(st.booleans()):
        filters["backend"] = ["small"]
    begin, end = sorted(draw(st.lists(_MOMENTS, min_size=2, max_size=2, unique=True)))
    return {
        "group_by": group_by,
        "filters": filters,
        "tz": draw(st.sampled_from(_ZONES)),
        "since": draw(st.sampled_from([begin, None])),
        "until": draw(st.sampled_from([end, None])),
    }


@hypothesis_settings(max_examples=30, deadline=None)
@given(rows=_rows(), data=st.data())
def test_rollups_equal_the_rows(
    sqlite_template: str, rows: list[Settlement], data: st.DataObject
) -> None:
    """Batches in any order, twice, with charges that come later: the same sums as from the rows."""
    pieces = [
        Settlement(request=one.request, charges=one.charges[:cut])
        for one in rows
        for cut in {data.draw(st.integers(0, len(one.charges))), len(one.charges)}
    ]
    pieces = data.draw(st.permutations([*pieces, *pieces[:2]]))
    size = data.draw(st.integers(1, 6))

    async def run() -> None:
        engine = await _emptied(sqlite_template)
        for start in range(0, len(pieces), size):
            await Repository(engine).write(pieces[start : start + size])
        async with engine.connect() as connection:
            assert await check.rollup_problems(connection) == []
        await _same_by_rows(engine, **data.draw(st.sampled_from(_QUESTIONS)))
        await engine.dispose()

    asyncio.run(run())


@hypothesis_settings(max_examples=60, deadline=None)
@given(rows=_rows(), asked=st.lists(_detailed(), min_size=3, max_size=3))
def test_reports_by_user_and_tag_equal_the_rows(
    sqlite_template: str, rows: list[Settlement], asked: list[dict[str, Any]]
) -> None:
    """Whatever is asked of whichever period: days put right by rows are the rows' sums; so they are
    with charges that come late, and where older days have no details, or no half hours."""
    today_us = bucket_us(DAY_S, round(NOW * SECOND_US))

    async def run() -> None:
        engine = await _emptied(sqlite_template)
        await Repository(engine).write(
            [Settlement(request=one.request, charges=one.charges[:1]) for one in rows]
        )
        await Repository(engine).write(rows)
        for question in asked:
            await _same_by_rows(engine, **question)
        async with engine.begin() as connection:
            await connection.execute(
                delete(rollup_details).where(rollup_details.c.bucket_us < today_us - DAY_US)
            )
            await connection.execute(
                delete(rollup_details).where(
                    rollup_details.c.bucket_us < today_us, rollup_details.c.span_s == HALF_S
                )
            )
            await state.write(connection, "details_from", today_us - DAY_US)
            await state.write(connection, "half_hours_from", today_us)
        for question in asked:
            await _same_by_rows(engine, **question)
        await engine.dispose()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("tz", "day"),
    [
        ("Europe/Berlin", "2026-10-25"),
        ("America/Havana", "2026-11-01"),
        ("Australia/Lord_Howe", "2026-10-04"),
        ("America/St_Johns", "2026-03-08"),
        ("Asia/Kathmandu", "2026-03-08"),
    ],
)
async def test_reports_by_user_and_tag_hold_when_clocks_change(
    sqlite_url: str, tz: str, day: str
) -> None:
    """Days of 23 to 25 hours, hours that come twice, changes by half an hour."""
    engine = open_engine(sqlite_url)
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() - 90_000
    rows = [
        settlement(
            f"r{n}",
            started_at=begin + 1_300 * n,
            user=("ann", None, "bob")[n % 3],
            tags={"env": "ab"[n % 2]} if n % 5 else {},
            charges=tuple(charge(f"r{n}", seq, at=begin + 1_300 * (n + seq)) for seq in (0, 2)),
        )
        for n in range(200)
    ]
    await Repository(engine).write(rows)
    cut = {"tz": tz, "since": f"{day}T02:10:00", "until": f"{day}T21:40:00"}
    for asked in (
        {"group_by": "day,user", "tz": tz},
        {"group_by": "hour,tag:env", "tz": tz},
        {"group_by": "hour,day", "filters": {"user": ["ann"]}, "tz": tz},
        {"group_by": "tag:env,hour,kind", **cut},
        {"group_by": "day,tag:env", **cut},
        {"group_by": "user", **cut},
    ):
        found = await _same_by_rows(engine, **asked)
        assert found["totals"]["requests"] > 20
    await engine.dispose()


async def test_request_at_both_sides_of_a_periods_end_counts_on_each(engine: AsyncEngine) -> None:
    """Two charges of a quarter of an hour, and the period ends or begins between them: what is
    taken out of the day is not the request's only count."""
    rows = [
        settlement(
            f"r{n}",
            started_at=NOW + hours * 3_600,
            charges=tuple(
                charge(f"r{n}", seq, at=NOW + hours * 3_600 + seq * 300) for seq in (0, 1)
            ),
        )
        for n, hours in enumerate((-11, -5, 0, 5, 11))
    ]
    await Repository(engine).write(rows)
    by_kind = {"group_by": "user,kind"}
    until = await _same_by_rows(engine, until="2026-11-21T17:02:00Z", **by_kind)
    assert until["totals"]["requests"] == 4
    since = await _same_by_rows(engine, since="2026-11-21T07:02:00Z", **by_kind)
    assert since["totals"]["requests"] == 3


async def test_reports_by_rollups_equal_reports_by_rows(engine: AsyncEngine) -> None:
    """Every kind of question, on both databases, with charges in several hours and days."""
    rows = [
        settlement(
            f"r{index}",
            team=team,
            started_at=NOW + hours * 3_600,
            outcome="error" if index % 5 == 0 else "ok",
            cache="exact" if index % 3 == 0 else "miss",
            user=("ann", "bob", None)[index % 3],
            tags=({"env": "prod"}, {"env": "test", "user": "x"}, {"a.b c": "a"}, {})[index % 4],
            charges=tuple(
                charge(f"r{index}", seq, backend=backend, at=NOW + (hours + seq) * 3_600)
                for seq, backend in enumerate(("nano", "small")[: index % 3])
            ),
        )
        for index, (team, hours) in enumerate(
            itertools.product(("ads", "search"), (-60, -25, -3, -0.2, 0, 0.2, 5, 30))
        )
    ]
    await Repository(engine).write(rows)
    for asked in _QUESTIONS:
        await _same_by_rows(engine, **asked)
    now, by_day = (
        datetime.fromtimestamp(NOW + 300_000, UTC),
        {"group_by": "day", "tz": "Asia/Tokyo"},
    )
    whole = await cost_rows(engine, now=now, **by_day)
    costs = await cost_rows(engine, now=now, wanted={"costs"}, **by_day)
    assert [(row["day"], row["cost_usd"]) for row in costs] == [
        (row["day"], row["cost_usd"]) for row in whole if row["cost_usd"] != "0"
    ]


async def test_concurrent_writers_neither_deadlock_nor_count_twice(engine: AsyncEngine) -> None:
    """Eight writers with the same rows in different orders: each row and each sum once."""
    rows = [settlement(f"r{index}", team=f"team {index % 7}") for index in range(60)]
    writers = [Repository(engine) for _ in range(8)]
    await asyncio.gather(
        *(
            writer.write(rows[shift:] + rows[:shift])
            for shift, writer in zip(range(0, 56, 7), writers, strict=True)
        )
    )
    async with engine.connect() as connection:
        assert await check.rollup_problems(connection) == []
    found = await costs_report(engine, Settings(), now=datetime(2026, 11, 22, tzinfo=UTC))
    assert found["totals"]["requests"] == 60
    assert found["totals"]["cost_usd"] == "0.00006"


async def test_check_names_a_wrong_rollup_and_rebuild_mends_it(engine: AsyncEngine) -> None:
    """A changed sum, a missing and an invented bucket are each one line; rebuilding removes all."""
    await Repository(engine).write([settlement(f"r{index}") for index in range(3)])
    async with engine.begin() as connection:
        await connection.execute(
            update(rollups).where(rollups.c.span_s == DAY_S).values(requests=7)
        )
        await connection.execute(delete(rollups).where(rollups.c.span_s == HOUR_S))
        problems = await check.rollup_problems(connection)
        assert len(problems) == 4
        assert sum("requests 7, the rows say 3" in line for line in problems) == 2
        assert await check.rebuild_rollups(connection) == 8
        assert await check.rollup_problems(connection) == []


async def test_rows_older_than_the_rollups_are_read_one_by_one(engine: AsyncEngine) -> None:
    """After an upgrade old rows stand in no roll-up, and reports count them all the same."""
    await Repository(engine).write([settlement("old", started_at=NOW - 86_400), settlement("new")])
    mark = int(NOW) * SECOND_US // (900 * SECOND_US) * 900 * SECOND_US
    async with engine.begin() as connection:
        await connection.execute(delete(rollups).where(rollups.c.bucket_us < mark - 86_400_000_000))
        await state.write(connection, "rollups_from", mark)
    found = await costs_report(
        engine, Settings(), group_by="day", now=datetime(2026, 11, 22, tzinfo=UTC)
    )
    assert [(row["day"], row["requests"]) for row in found["rows"]] == [
        ("2026-11-20", 1),
        ("2026-11-21", 1),
    ]


def _cut_up(pieces: Sequence[Piece]) -> list[tuple[int, int]]:
    """Begin and end of every bucket."""
    return [
        (at_us, at_us + abs(piece.span_s) * SECOND_US)
        for piece in pieces
        for at_us in range(piece.from_us, piece.until_us, abs(piece.span_s) * SECOND_US)
    ]


def _moved_about(
    buckets: list[tuple[int, int]], moved: list[tuple[int, int]], zone: ZoneInfo
) -> list[tuple[int, int]]:
    """The buckets as they count: days without what is moved out of them, and that by itself."""
    found = list(moved)
    for begin, end in buckets:
        inside = sorted(one for one in moved if begin <= one[0] < end)
        for left, right in itertools.pairwise([(begin, begin), *inside, (end, end)]):
            if left[1] < right[0]:
                found.append((left[1], right[0]))
        if inside:
            noon = datetime.fromtimestamp((begin + end) / 2e6, zone).date()
            kept = found[-1][0] / 1e6
            assert datetime.fromtimestamp(kept, zone).date() == noon, "it counts where its noon is"
    return found


@pytest.mark.parametrize(
    ("asked", "spans"),
    [
        ({"group_by": "team"}, {DAY_S, HOUR_S, QUARTER_S}),
        ({"group_by": "day"}, {DAY_S, HOUR_S, QUARTER_S}),
        ({"group_by": "day", "tz": "Europe/Berlin"}, {DAY_S, HOUR_S, QUARTER_S}),
        ({"group_by": "hour,team"}, {HOUR_S, QUARTER_S}),
        ({"group_by": "day", "tz": "Asia/Kolkata"}, {DAY_S, QUARTER_S}),
        ({"group_by": "hour", "tz": "Asia/Kolkata"}, {HALF_PAST_S, QUARTER_S}),
        ({"group_by": "day", "tz": "America/Havana"}, {DAY_S, HOUR_S, QUARTER_S}),
        ({"group_by": "day", "tz": "Pacific/Kiritimati"}, {DAY_S, HOUR_S, QUARTER_S}),
        ({"group_by": "hour", "tz": "Australia/Adelaide"}, {HALF_PAST_S, QUARTER_S}),
        ({"group_by": "day", "tz": "Asia/Kathmandu"}, {DAY_S, QUARTER_S}),
        ({"group_by": "hour", "tz": "Asia/Kathmandu"}, {QUARTER_S}),
        ({"group_by": "user,tag:env,hour"}, set()),
        ({"group_by": "team", "filters": {"kind": ["answer", "retry"]}}, set()),
    ],
)
def test_plan_uses_the_widest_buckets_that_fit(asked: dict[str, Any], spans: set[int]) -> None:
    """Pieces cover the period once, without a gap; what no roll-up holds is read from the rows."""
    query = parse_query(
        since="2026-10-02T03:04:05Z", now=datetime(2026, 11, 21, 12, 34, 56, tzinfo=UTC), **asked
    )
    held = (query.since_us, query.until_us)
    found = plan(query, rollups_from_us=0, held_us=held)
    assert {piece.span_s for piece in found.buckets} == spans
    assert can_answer(query) == bool(spans)
    assert sum(len(batch) for batch in batches(found.buckets)) == len(found.buckets)
    buckets, moved = _cut_up(found.buckets), _cut_up(found.moved)
    if "day" in query.group_by or "hour" in query.group_by:
        zone, shape = ZoneInfo(query.tz), "%d" if "day" in query.group_by else "%d %H"
        for moments in _moved_about(buckets, moved, zone):
            first, last = (datetime.fromtimestamp(us / 1e6 - i, zone).strftime(shape) for i, us in
                           enumerate(moments))  # fmt: skip
            assert first == last, "no local day or hour ends within a bucket"
    pieces = sorted([*buckets, *found.rows])
    assert pieces[0][0] == query.since_us
    assert pieces[-1][1] == query.until_us
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pieces))
    if spans:
        assert all(end - begin < 900 * SECOND_US for begin, end in found.rows)


async def test_names_stand_apart_from_the_rows(engine: AsyncEngine) -> None:
    """Rows hold random ids for team and user; finding a request gives the names back."""
    await Repository(engine).write([settlement("r1", team="search", user="ann")])
    async with engine.connect() as connection:
        row = (await connection.execute(text('SELECT team, "user" FROM requests'))).one()
        names = (await connection.execute(select(metadata.tables["subjects"].c.name))).scalars()
        assert set(names) == {"search", "ann"}
    assert len(row[0]) == len(row[1]) == 32
    found = await Repository(engine).find("r1")
    assert found is not None
    assert (found.request.team, found.request.user) == ("search", "ann")
