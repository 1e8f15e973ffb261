"""Forecasts, anomalies, hints and the monthly report out of a real ledger of five weeks."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.insights.changes import find_changes
from gateway.insights.hints import Oversize, find_hints
from gateway.insights.monthly import monthly_report
from gateway.insights.outlook import month_of, month_outlook
from gateway.ledger.cache_report import cache_report
from gateway.ledger.database import open_engine
from gateway.ledger.records import Settlement
from gateway.ledger.report_query import ReportError
from gateway.ledger.reports import costs_report
from gateway.ledger.repository import Repository
from gateway.ledger.tables import machine_time
from gateway.settings import BackendSettings, MachineSettings, Settings
from tests.gateway.insights.simulated import WEEK_H, team_hours
from tests.gateway.ledger.samples import charge, settlement

BEGIN = datetime(2026, 10, 19, tzinfo=UTC)
"""A Monday."""
HOURS = 5 * WEEK_H
NOW = BEGIN + timedelta(hours=HOURS, minutes=20)
SETTINGS = Settings(
    machines=[MachineSettings(name="local", type="cpu", usd_per_hour=Decimal("0.1"))],
    backends=[BackendSettings(name="small", model="bundled:small")],
)


def _spend(team: str, hour: int, cost: float, name: str = "", **fields: Any) -> Settlement:
    at = BEGIN.timestamp() + hour * 3600 + 5
    one = f"{team}{hour}{name}"
    booked = charge(one, at=at, cost_nano_usd=round(cost), prompt_tokens=900, completion_tokens=100)
    given: dict[str, Any] = {
        "team": team,
        "started_at": at,
        "charges": (booked,),
        "model": "auto",
        **fields,
    }
    return settlement(one, **given)


@pytest.fixture(scope="module")
def written(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Teams `search` and `<i>ads</i>`; in the last three hours search's big model costs more."""
    file = tmp_path_factory.mktemp("ledger") / "headgate.db"
    shutil.copy(migrated_sqlite, file)
    url = f"sqlite+aiosqlite:///{file}"
    asyncio.run(_write(url))
    return url


async def _write(url: str) -> None:
    search, ads = (team_hours(seed, weeks=5, noise=0.08) for seed in (1, 2))
    rows = [_spend("search", hour, search[hour] / 2, "s") for hour in range(HOURS)]
    rows += [
        _spend("search", h, search[h] * (2.5 if h >= HOURS - 3 else 0.5), "b", model="big")
        for h in range(HOURS)
    ]
    rows += [_spend("<i>ads</i>", hour, ads[hour]) for hour in range(HOURS)]
    late = NOW.timestamp() - 60
    rows += [
        settlement(
            f"hit{n}",
            team="search",
            cache="exact",
            charges=(),
            saved_nano_usd=5_000,
            started_at=late,
        )
        for n in range(10)
    ]
    engine = open_engine(url)
    for start in range(0, len(rows), 1000):
        await Repository(engine).write(rows[start : start + 1000])
    await engine.dispose()


@pytest.fixture
async def ledger(written: str) -> AsyncIterator[AsyncEngine]:
    """To be read only."""
    engine = open_engine(written)
    yield engine
    await engine.dispose()


async def test_change_names_who_since_when_and_what_explains_it(ledger: AsyncEngine) -> None:
    """Search spends more; the model `big` brings all of it, by dearer tokens, not by more."""
    async with ledger.connect() as connection:
        found = await find_changes(connection, NOW)
    (team,) = (one for one in found if one.by == "team")
    assert team.name == "search"
    assert team.times == pytest.approx(3.0, rel=0.3)
    assert "model big explains 100% of it" in team.reason
    assert re.match(r"cost of a token [23]\.\d", team.reason)
    assert ("model", "big") in [(one.by, one.name) for one in found]
    async with ledger.connect() as connection:
        assert await find_changes(connection, NOW - timedelta(hours=4)) == []


async def test_outlook_holds_what_is_spent_and_the_rest_of_the_month(ledger: AsyncEngine) -> None:
    """By team; the month so far is exact and the end lies above it, in its interval."""
    begin, end = month_of(NOW)
    assert (begin.day, end.month) == (1, 12)
    async with ledger.connect() as connection:
        found = {one.name: one for one in await month_outlook(connection, by="team", now=NOW)}
    assert set(found) == {"search", "<i>ads</i>"}
    ads = team_hours(2, weeks=5, noise=0.08)
    first = int((begin - BEGIN).total_seconds() // 3600)
    assert found["<i>ads</i>"].spent_nano_usd == sum(round(cost) for cost in ads[first:])
    forecast = found["<i>ads</i>"].forecast
    assert forecast is not None
    assert found["<i>ads</i>"].spent_nano_usd < forecast.low < forecast.expected < forecast.high
    assert found["<i>ads</i>"].shown()["note"] == ""


async def test_monthly_report_adds_up_and_lets_no_name_be_markup(ledger: AsyncEngine) -> None:
    """Every day of November so far, the total of the team, and its name as text."""
    report = await monthly_report(ledger, SETTINGS, month="2026-11", team="<i>ads</i>", now=NOW)
    text = report.html
    assert "&lt;i&gt;ads&lt;/i&gt;: 2026-11" in text
    assert "<i>ads" not in text
    assert text.count("<title>2026-11-") == 30, "a bar for every day"
    ads = team_hours(2, weeks=5, noise=0.08)
    first = int((month_of(NOW)[0] - BEGIN).total_seconds() // 3600)
    total = Decimal(sum(round(cost) for cost in ads[first:])) / 10**9
    assert f'title="${total.normalize():f}">${total:.3g}' in text
    assert report.facts["cost_usd"] == f"{total.normalize():f}"
    whole = (await monthly_report(ledger, SETTINGS, month="2026-11", now=NOW)).html
    assert "Avoided by reused answers" in whole
    assert "Avoided by reused answers" not in text
    assert "every request as one call to gpt-4o-mini" in text
    with pytest.raises(ReportError, match="YYYY-MM"):
        await monthly_report(ledger, SETTINGS, month="2026-13", now=NOW)


async def test_monthly_report_ends_with_its_month(ledger: AsyncEngine) -> None:
    """Asked on the first, when it goes out: without the new month's first hours, by its zone."""
    tz, sent = "Europe/Berlin", datetime(2026, 11, 1, 5, tzinfo=UTC)
    report = await monthly_report(ledger, SETTINGS, month="2026-10", tz=tz, now=sent)
    exact = await costs_report(
        ledger, SETTINGS, since="2026-10-01", until="2026-11-01", tz=tz, now=sent
    )
    assert report.facts["full_cost_usd"] == exact["totals"]["full_cost_usd"] != "0"
    running = await monthly_report(ledger, SETTINGS, month="2026-11", tz=tz, now=sent)
    assert running.facts["requests"] == 18, "three teams, six hours"


async def test_cache_report_tells_rates_and_money(ledger: AsyncEngine) -> None:
    """Ten hits of the last hour, and what they avoided."""
    since = (NOW - timedelta(minutes=30)).isoformat()
    found = await cache_report(ledger, SETTINGS, since=since, until=NOW.isoformat())
    (row,) = found["rows"]
    assert (row["team"], row["cache_hits_exact"], row["exact_rate"]) == ("search", 10, 1.0)
    assert found["avoided_usd"] == "0.00005"


async def test_hint_finds_the_hours_around_midnight(sqlite_url: str) -> None:
    """Busy by day, idle from 20:00 to 06:00: ten hours of two days at 10 cents."""
    engine = open_engine(sqlite_url)
    begin = NOW.replace(hour=0, minute=0) - timedelta(days=2)
    rows = []
    for hour in range(48):
        started = round((begin + timedelta(hours=hour)).timestamp() * 1e6)
        night = hour % 24 >= 20 or hour % 24 < 6
        for kind, share in (("run", 1.0), ("idle", 0.95 if night else 0.3)):
            rows.append(
                {
                    "machine": "local",
                    "backend": "small" if kind == "run" else "",
                    "kind": kind,
                    "started_us": started,
                    "ended_us": started + 3_600_000_000,
                    "ns": round(share * 3_600e9),
                }
            )
    async with engine.begin() as connection:
        await connection.execute(insert(machine_time), rows)
    now = begin + timedelta(days=2)
    async with engine.connect() as connection:
        (hint,) = await find_hints(connection, SETTINGS, days=2, tz="UTC", now=now)
    assert (hint.since, hint.until, hint.idle_usd) == ("20:00", "06:00", "1.9")
    assert hint.text == "local was 5% busy between 20:00 and 06:00: $1.90 of idle time in 2 days."
    await engine.dispose()


@pytest.mark.parametrize(
    ("busiest", "hours", "needed", "saved"),
    [
        ((0.6, 0.4, 0.3), 72, 2, "7.2"),
        ((0.6, 0.5, 0.4), 72, None, None),  # two would be busy for 75 % of that hour
        ((0.3,), 72, 0.5, "3.6"),
        ((0.4,), 72, None, None),
        ((0.3,), 40, None, None),  # too short to tell
    ],
)
async def test_hint_counts_the_machines_that_the_busiest_hour_needs(
    sqlite_url: str,
    busiest: tuple[float, ...],
    hours: int,
    needed: float | None,
    saved: str | None,
) -> None:
    """A fifth busy but for one hour; 10 cents an hour each."""
    names = [f"gpu{number}" for number in range(len(busiest))]
    machines = [MachineSettings(name=n, type="l4", usd_per_hour=Decimal("0.1")) for n in names]
    settings = Settings(
        machines=machines, backends=[BackendSettings(name="small", model="bundled:small")]
    )
    end = NOW.replace(hour=0, minute=0)
    rows = []
    for hour in range(hours):
        started = round((end - timedelta(hours=hours - hour)).timestamp() * 1e6)
        for name, most in zip(names, busiest, strict=True):
            busy = most if hour == 30 else 0.2
            for kind, share in (("run", 1.0), ("idle", 1 - busy)):
                rows.append(
                    {
                        "machine": name,
                        "backend": "small" if kind == "run" else "",
                        "kind": kind,
                        "started_us": started,
                        "ended_us": started + 3_600_000_000,
                        "ns": round(share * 3_600e9),
                    }
                )
    engine = open_engine(sqlite_url)
    async with engine.begin() as connection:
        await connection.execute(insert(machine_time), rows)
    async with engine.connect() as connection:
        hints = await find_hints(connection, settings, days=3, tz="UTC", now=end)
    await engine.dispose()
    found = [one for one in hints if isinstance(one, Oversize)]
    if needed is None:
        assert found == []
        return
    (hint,) = found
    assert (hint.needed, hint.saved_usd, hint.machines) == (needed, saved, names)
    assert "half as fast" in hint.text if needed == 0.5 else "2 would do" in hint.text
