"""Windows: calendar ones in their time zone, rolling ones, a lifetime, by the database's clock."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import BudgetSpent
from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.database_clock import DatabaseClock
from gateway.ledger.repository import Repository
from gateway.ledger.windows import check_window, check_zone, first_start_us, window_start_us
from tests.gateway.ledger.budget_samples import TEAM, set_limit, spend_of
from tests.gateway.ledger.samples import NOW, charge, settlement

DAY_S = 86_400.0


async def test_windows_follow_one_another(engine: AsyncEngine) -> None:
    """A spent day does not spend the next; a reservation ends in the window it began in."""
    budget = await set_limit(engine, 100)
    now = NOW
    budgets = Budgets(engine, clock=lambda: now, owner="a")
    await budgets.refresh()
    late = await budgets.reserve(TEAM, 100)
    now += 86_400
    next_day = await budgets.reserve(TEAM, 100)
    late.settle(70)
    next_day.settle(20)
    await budgets.aclose()
    assert await spend_of(engine, budget) == Spend(spent=70)
    async with engine.connect() as connection:
        tomorrow = store.counter_of(budget, now)
        assert (await store.read_spend(connection, [tomorrow]))[tomorrow] == Spend(spent=20)


@pytest.mark.parametrize(
    ("window", "tz", "start"),
    [
        ("minute", "UTC", "2026-11-21T12:00:00+00:00"),
        ("hour", "Asia/Kolkata", "2026-11-21T17:00:00+05:30"),
        ("day", "UTC", "2026-11-21T00:00:00+00:00"),
        ("day", "Pacific/Auckland", "2026-11-22T00:00:00+13:00"),
        ("week", "UTC", "2026-11-16T00:00:00+00:00"),
        ("week", "America/New_York", "2026-11-16T00:00:00-05:00"),
        ("month", "UTC", "2026-11-01T00:00:00+00:00"),
        ("month", "America/New_York", "2026-11-01T00:00:00-04:00"),
        ("lifetime", "UTC", "1970-01-01T00:00:00+00:00"),
    ],
)
def test_windows_begin_where_the_calendar_says(window: str, tz: str, start: str) -> None:
    """In their own time zone, also when its clocks changed since."""
    began = window_start_us(window, NOW, tz)
    assert datetime.fromtimestamp(began / 1e6, ZoneInfo(tz)).isoformat() == start
    assert window_start_us(window, began / 1e6, tz) == began


@given(
    minutes=st.integers(0, 2_000_000),
    window=st.sampled_from(["hour", "day", "week", "month", "rolling-1h", "rolling-30d"]),
    tz=st.sampled_from(["UTC", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
)
def test_windows_never_go_back(minutes: int, window: str, tz: str) -> None:
    """A later minute is in the same window or a later one, and every window holds its moment."""
    now = (datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)).timestamp()
    start = window_start_us(window, now, tz)
    assert start <= now * 1e6
    assert start <= window_start_us(window, now + 60, tz)


@pytest.mark.parametrize("window", ["", "fortnight", "rolling-0h", "rolling-5", "rolling-9999d"])
def test_impossible_windows_are_refused(window: str) -> None:
    """And so are time zones that are none."""
    with pytest.raises(ValueError, match="allowed"):
        check_window(window)
    for tz in ("Mars/Olympus", "../etc/passwd", "", "UTC; DROP TABLE budgets"):
        with pytest.raises(ValueError, match="allowed"):
            check_zone(tz)


async def test_rolling_window_forgets_only_what_is_too_old(engine: AsyncEngine) -> None:
    """No stretch of its length holds more than the limit, and room comes back bucket by bucket."""
    now = NOW
    one, two = (Budgets(engine, clock=lambda: now, owner=name) for name in ("one", "two"))
    async with engine.begin() as connection:
        budget = Budget(scope="team:search", window="rolling-1h", limit_nano_usd=100)
        await store.set_budget(connection, budget, now=now)
    for budgets in (one, two):
        await budgets.refresh()
    (await one.reserve(TEAM, 60)).settle(60)
    for _ in range(2):  # and the rest of its slice returns
        await one.sync()
    now += 1800
    (await two.reserve(TEAM, 40)).settle(40)
    await two.sync()
    await two.refresh()
    with pytest.raises(BudgetSpent):
        await two.reserve(TEAM, 1)
    now += 1740  # 59 minutes after the first
    with pytest.raises(BudgetSpent):
        await one.reserve(TEAM, 1)
    now += 180  # its bucket is out
    await one.refresh()
    (await one.reserve(TEAM, 60)).settle(60)
    with pytest.raises(BudgetSpent):
        await one.reserve(TEAM, 1)
    await one.sync()
    await one.refresh()
    assert one.state(TEAM).left == 0.0
    await one.aclose()
    await two.aclose()
    assert await spend_of(engine, budget, now) == Spend(spent=100)


async def test_rolling_window_tells_a_threshold_once_per_length(engine: AsyncEngine) -> None:
    """Its buckets are many; who was told that 80 % are spent need not hear it with each of them."""
    now = NOW
    async with engine.begin() as connection:
        budget = Budget(scope="team:search", window="rolling-1h", limit_nano_usd=100)
        await store.set_budget(connection, budget, now=now)
    one = Budgets(engine, clock=lambda: now, owner="one")
    told = []
    for minutes in (0, 1, 30, 59, 70):
        now = NOW + 60 * minutes
        await one.refresh()
        if minutes == 0:
            (await one.reserve(TEAM, 90)).settle(90)
            for _ in range(2):  # and the rest of its slice returns
                await one.sync()
        with structlog.testing.capture_logs() as logs:
            await one.refresh()
            again = Budgets(engine, clock=one.clock, owner="two")
            await again.refresh()  # a process that has just begun knows it, too
        told.append([entry["percent"] for entry in logs])
    await one.aclose()
    assert told == [[80], [], [], [], []]


async def test_new_rolling_budget_counts_what_was_spent(engine: AsyncEngine) -> None:
    """Charges within its length count, older ones do not; the first bucket is whole."""
    rows = [(120.0, 30), (7_200.0, 7), (90_000.0, 500)]
    await Repository(engine).write(
        [
            settlement(
                f"r{cost}",
                started_at=NOW - age_s,
                charges=(charge(f"r{cost}", cost_nano_usd=cost),),
            )
            for age_s, cost in rows
        ]
    )
    async with engine.begin() as connection:
        budget = Budget(scope="team:search", window="rolling-24h", limit_nano_usd=1000)
        await store.set_budget(connection, budget, now=NOW)
    assert await spend_of(engine, budget) == Spend(spent=37)
    start = window_start_us("rolling-24h", NOW)
    assert start - first_start_us("rolling-24h", start) == round(DAY_S * 1e6)


async def test_database_s_clock_counts_not_the_host_s(engine: AsyncEngine) -> None:
    """A host whose clock is wrong, or is set back, books in the same windows as all others."""
    monotonic = 1000.0
    wrong = DatabaseClock(wall=lambda: 0.0, monotonic=lambda: monotonic)
    assert wrong() == 0.0
    right = DatabaseClock()
    async with engine.connect() as connection:
        await right.read(connection)
        await wrong.read(connection)
    assert abs(wrong() - right()) < 5.0
    before = wrong()
    monotonic += 60.0  # whatever the host's calendar says meanwhile
    assert abs(wrong() - before - 60.0) < 0.001


async def test_time_zone_of_a_budget_can_change(engine: AsyncEngine) -> None:
    """Its new window counts what the ledger has in it."""
    await Repository(engine).write(
        [settlement("r1", started_at=NOW - 6 * 3600, charges=(charge("r1", cost_nano_usd=30),))]
    )
    budget = Budget(scope="team:search", window="day", limit_nano_usd=100)
    async with engine.begin() as connection:
        await store.set_budget(connection, budget, now=NOW)
        late = Budget(scope="team:search", window="day", limit_nano_usd=100, tz="Pacific/Auckland")
        await store.set_budget(connection, late, now=NOW)
    assert (await spend_of(engine, budget)).spent == 30
    assert (await spend_of(engine, late)).spent == 0, "there the day began an hour ago"
