"""Reservations hold limits, refuse with the right words, and cost next to nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import BudgetReserved, BudgetSpent, BudgetUnavailable
from gateway.ledger import budget_store as store
from gateway.ledger.budget_alerts import list_alerts
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.keys import Caller
from gateway.ledger.repository import Repository
from gateway.ledger.stamp import NAME, touch
from tests.gateway.ledger.budget_samples import OTHER, TEAM, set_limit, spend_of, still
from tests.gateway.ledger.samples import NOW, charge, settlement


@pytest.fixture
async def budgets(engine: AsyncEngine) -> AsyncIterator[Budgets]:
    made = still(engine)
    yield made
    await made.aclose()


async def test_caller_without_a_budget_pays_no_transaction(engine: AsyncEngine) -> None:
    """No budget of his: nothing is asked of the database, and everything is left."""
    await set_limit(engine, 100)
    budgets = still(engine)
    await budgets.refresh()
    await engine.dispose()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE budget_spend RENAME TO away"))
    reservation = await budgets.reserve(OTHER, 10**12)
    reservation.settle(10**12)
    assert budgets.state(OTHER).left == 1.0
    with pytest.raises(BudgetUnavailable):
        await budgets.reserve(TEAM, 10)


async def test_reservations_stop_at_the_limit(engine: AsyncEngine, budgets: Budgets) -> None:
    """Held money counts; spent money is refused for good, held money only for now."""
    budget = await set_limit(engine, 100)
    await budgets.refresh()
    first = await budgets.reserve(TEAM, 60)
    with pytest.raises(BudgetReserved) as held:
        await budgets.reserve(TEAM, 60)
    assert "retry-after" in held.value.headers()
    with pytest.raises(BudgetSpent, match=r"team:search per day of \$0.0000001 has"):
        await budgets.reserve(TEAM, 101)
    first.settle(50)
    second = await budgets.reserve(TEAM, 50)
    second.settle(50)
    second.settle(50)
    with pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 1)
    await budgets.sync()
    assert await spend_of(engine, budget) == Spend(spent=100, reserved=0, overrun=0)
    assert budgets.state(TEAM).left == 0.0
    assert budgets.state(OTHER).left == 1.0


async def test_overrun_is_apart_and_counts(engine: AsyncEngine, budgets: Budgets) -> None:
    """What a request cost beyond its reservation never hides in spent, and stops the next one."""
    budget = await set_limit(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 60)).settle(90)
    await budgets.sync()
    await budgets.sync()
    assert await spend_of(engine, budget) == Spend(spent=60, reserved=0, overrun=30)
    with pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 20)
    (await budgets.reserve(TEAM, 10)).release()


async def test_all_budgets_of_a_caller_must_have_room(
    engine: AsyncEngine, budgets: Budgets
) -> None:
    """Key, team, user and everybody: the tightest decides, and a refusal holds nothing anywhere."""
    wide = await set_limit(engine, 1000, "global")
    await set_limit(engine, 500, "key:key_1")
    await set_limit(engine, 50, "user:ann")
    await budgets.refresh()
    ann = Caller(key_id="key_1", team="search", user="ann")
    with pytest.raises(BudgetSpent, match="user:ann"):
        await budgets.reserve(ann, 51)
    with pytest.raises(BudgetSpent, match="key:key_1"):
        await budgets.reserve(TEAM, 501)
    (await budgets.reserve(ann, 50)).settle(25)
    await budgets.sync()
    await budgets.sync()
    assert await spend_of(engine, wide) == Spend(spent=25, reserved=0, overrun=0)
    assert budgets.state(ann).left == 0.5
    assert budgets.state(TEAM).left == 0.95
    assert budgets.state(OTHER).left == 0.975


async def test_soft_budget_warns_and_refuses_nothing(engine: AsyncEngine, budgets: Budgets) -> None:
    """Spending beyond a soft limit is booked, and said once per window."""
    budget = await set_limit(engine, 100, soft=True)
    await budgets.refresh()
    for _ in range(3):
        (await budgets.reserve(TEAM, 80)).settle(80)
    await budgets.sync()
    with structlog.testing.capture_logs() as logs:
        await budgets.refresh()
        await budgets.refresh()
    assert (await spend_of(engine, budget)).spent == 240
    assert [entry["percent"] for entry in logs] == [80, 100]
    assert {entry["event"] for entry in logs} == {"budget_threshold_passed"}
    assert {entry["scope"] for entry in logs} == {"team:…"}, "logs name nobody"
    assert budgets.state(TEAM).left == 0.0


@pytest.mark.parametrize(("spent", "told"), [(94, [80]), (95, [80, 100])])
async def test_hard_limit_without_room_for_a_request_counts_as_spent(
    engine: AsyncEngine, budgets: Budgets, spent: int, told: list[int]
) -> None:
    """The last percents of a limit are less than a request takes: who waits for the alert of 100 %
    hears it with the first refusal. A large request's refusal earlier on says nothing."""
    await set_limit(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, spent)).settle(spent)
    await budgets.sync()
    with structlog.testing.capture_logs() as logs, pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 10)
    assert [entry["event"] for entry in logs] == ["budget_refused"]
    assert TEAM.team not in str(logs)
    with structlog.testing.capture_logs() as logs:
        await budgets.refresh()
        await budgets.refresh()
    assert [entry["percent"] for entry in logs] == told


async def test_raised_limit_tells_its_thresholds_again(
    engine: AsyncEngine, budgets: Budgets
) -> None:
    """Who raises a limit wants to hear when the new one is nearly spent, not when it is raised."""
    await set_limit(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 90)).settle(90)
    await budgets.sync()
    await budgets.refresh()
    await set_limit(engine, 200)
    async with engine.connect() as connection:
        assert await list_alerts(connection) == []
    with structlog.testing.capture_logs() as logs:
        await budgets.refresh()
        assert logs == []
        (await budgets.reserve(TEAM, 80)).settle(80)
        await budgets.sync()
        await budgets.refresh()
    assert [entry["percent"] for entry in logs] == [80]


async def test_new_budget_counts_what_its_window_spent(
    engine: AsyncEngine, budgets: Budgets
) -> None:
    """Charges of the window before the budget was set count, others' and older ones do not."""
    await Repository(engine).write(
        [
            settlement("r1"),
            settlement("r2", charges=(charge("r2", cost_nano_usd=40), charge("r2", 1))),
            settlement("r3", team="ads"),
            settlement("r4", started_at=NOW - 86_400),
        ]
    )
    assert await spend_of(engine, await set_limit(engine, 10_000)) == Spend(spent=2_040)
    everybody = await set_limit(engine, 10_000, "global")
    assert (await spend_of(engine, everybody)).spent == 3_040
    hostile = await set_limit(engine, 10_000, "user:' OR 1=1 --")
    assert (await spend_of(engine, hostile)).spent == 0


async def test_changed_and_removed_budgets_are_seen(engine: AsyncEngine, budgets: Budgets) -> None:
    """A higher limit lets in, a removed one lets in, setting it again counts on."""
    await set_limit(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 100)).settle(100)
    await set_limit(engine, 150)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 50)).settle(50)
    async with engine.begin() as connection:
        await store.remove_budget(connection, scope="team:search", window="day")
        with pytest.raises(store.UnknownBudget):
            await store.remove_budget(connection, scope="team:search", window="day")
    await budgets.refresh()
    (await budgets.reserve(TEAM, 10**6)).settle(10**6)


@pytest.mark.parametrize(
    ("scope", "window", "limit"),
    [
        ("team:", "day", 1),
        ("org:x", "day", 1),
        ("", "day", 1),
        ("team:x", "fortnight", 1),
        ("team:x", "rolling-0h", 1),
        ("tag:x", "day", 1),
        ("team:a\nb", "day", 1),
        ("team:x", "day", 0),
        ("team:x", "day", -5),
        ("team:x", "day", 2**62),
    ],
)
async def test_bad_budgets_are_refused(
    engine: AsyncEngine, scope: str, window: str, limit: int
) -> None:
    """Unknown scopes and windows, limits that are not positive or beyond SQL."""
    async with engine.begin() as connection:
        wanted = Budget(scope=scope, window=window, limit_nano_usd=limit)
        with pytest.raises(ValueError, match="allowed"):
            await store.set_budget(connection, wanted, now=NOW)


async def test_cancelled_waiter_leaves_nothing_held(engine: AsyncEngine, budgets: Budgets) -> None:
    """A client that goes away while its reservation is on its way blocks nobody."""
    budget = await set_limit(engine, 100)
    await budgets.refresh()
    for delay_s in (0.0, 0.0005, 0.002, 0.005):
        waiter = asyncio.create_task(budgets.reserve(TEAM, 100))
        await asyncio.sleep(delay_s)
        if waiter.cancel():
            with pytest.raises(asyncio.CancelledError):
                await waiter
        else:
            (await waiter).release()
        await asyncio.sleep(0.02)
        await budgets.sync()
        await budgets.sync()
        assert await spend_of(engine, budget) == Spend()
    (await budgets.reserve(TEAM, 100)).release()


async def test_new_budget_on_this_host_is_seen_at_once(engine: AsyncEngine, tmp_path: Path) -> None:
    """The stamp that commands touch makes the next reservation look again."""
    budgets = Budgets(engine, clock=lambda: NOW, owner="a", stamp=tmp_path / NAME)
    await budgets.refresh()
    await set_limit(engine, 100)
    (await budgets.reserve(TEAM, 101)).release()
    touch(tmp_path)
    with pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 101)
    await budgets.aclose()
