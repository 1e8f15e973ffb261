"""Late charges and corrections count in the budgets of their requests."""

import time

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.corrections import correct
from gateway.ledger.late_spending import by_backend
from gateway.ledger.overruns import list_overruns
from gateway.ledger.repository import Repository
from tests.gateway.ledger.budget_samples import OTHER, TEAM, set_limit, spend_of, still
from tests.gateway.ledger.samples import NOW, charge, settlement

DAY_S = 86_400.0


async def _booked(engine: AsyncEngine, budget: Budget) -> int:
    """What the ledger has in the budget's window."""
    async with engine.connect() as connection:
        found = await connection.execute(select(store.booked(store.counter_of(budget, NOW))))
        return int(found.scalar_one())


async def test_correction_counts_in_every_budget_of_its_request(engine: AsyncEngine) -> None:
    """Team, key, user, tag, model and organisation change together; another team's does not."""
    scopes = ("team:search", "key:key_1", "user:ann", "tag:env=prod", "model:small", "global")
    await Repository(engine).write(
        [settlement("r1"), settlement("r2", team="ads", key="key_2", user=None, tags={})]
    )
    mine = [await set_limit(engine, 10_000, scope) for scope in scopes]
    other = await set_limit(engine, 10_000, "team:ads")
    await correct(engine, "r1", 0, cost_nano_usd=250, now=NOW + 60, chained=False)
    both = [Spend(spent=1_250) if b.scope in ("model:small", "global") else None for b in mine]
    for budget, with_other in zip(mine, both, strict=True):
        assert await spend_of(engine, budget) == (with_other or Spend(spent=250)), budget.scope
        assert (await spend_of(engine, budget)).used == await _booked(engine, budget)
    assert await spend_of(engine, other) == Spend(spent=1_000)


async def test_correction_upwards_is_overrun_beyond_the_limit(engine: AsyncEngine) -> None:
    """What fits is spent, the rest stands apart; taking it back takes the overrun back first."""
    await Repository(engine).write([settlement("r1")])
    budget = await set_limit(engine, 1_500)
    booked = await correct(engine, "r1", 0, cost_nano_usd=4_000, now=NOW, chained=False)
    assert await spend_of(engine, budget) == Spend(spent=1_500, overrun=2_500)
    await correct(engine, "r1", booked[1].seq, cost_nano_usd=1_200, now=NOW, chained=False)
    assert await spend_of(engine, budget) == Spend(spent=1_200)


async def test_correction_of_yesterday_changes_yesterday(engine: AsyncEngine) -> None:
    """A request counts in the window in which it started, also when it is corrected later."""
    async with engine.begin() as connection:
        wanted = Budget(scope="team:search", window="day", limit_nano_usd=10_000)
        await store.set_budget(connection, wanted, now=NOW)
    await Repository(engine).write([settlement("r1")])
    process = still(engine)
    await process.refresh()
    (await process.reserve(TEAM, 100)).settle(0)  # the day's counter is there from now on
    await process.aclose()
    await correct(engine, "r1", 0, now=NOW + DAY_S, chained=False)
    async with engine.connect() as connection:
        (budget,) = await store.list_budgets(connection)
        today, yesterday = (store.counter_of(budget, NOW + s) for s in (DAY_S, 0.0))
        found = await store.read_spend(connection, [today, yesterday])
    assert found.get(yesterday, Spend()).used == await _booked(engine, budget) == 0
    assert found.get(today, Spend()) == Spend()


async def test_shadow_is_nobody_s_spending_corrected_or_not(engine: AsyncEngine) -> None:
    """Taking a shadow's charge back must not give a customer money that it never paid."""
    shadow = charge("r1", 1000, kind="shadow", cost_nano_usd=700)
    await Repository(engine).write([settlement("r1", charges=(charge("r1"), shadow))])
    budget = await set_limit(engine, 10_000)
    await correct(engine, "r1", 1000, cost_nano_usd=100, now=NOW, chained=False)
    assert await spend_of(engine, budget) == Spend(spent=1_000)
    assert await _booked(engine, budget) == 1_000
    assert by_backend((charge("r1"), shadow)) == {"small": 1_000}


async def test_late_charge_is_spent_where_there_is_room_else_overrun(engine: AsyncEngine) -> None:
    """It is leased like a reservation; without room it is overrun of the key, nobody else's."""
    team, model = await set_limit(engine, 1_000), await set_limit(engine, 200, "model:small")
    process = still(engine)
    await process.refresh()
    process.add(OTHER, {}, {"small": 50}, at=NOW)
    process.add(TEAM, {}, {"small": 170, "other": 30}, at=NOW)
    await process.aclose()
    assert await spend_of(engine, team) == Spend(spent=200)
    assert await spend_of(engine, model) == Spend(spent=50, overrun=170)
    async with engine.connect() as connection:
        (row,) = await list_overruns(connection)
    assert (row["key"], row["overrun_usd"]) == (TEAM.key_id, "0.00000017")


async def test_late_charge_counts_though_its_process_dies_before_it_counts_it(
    engine: AsyncEngine,
) -> None:
    """The lease stands before the charge does, so what the ledger has in its name is found."""
    async with engine.begin() as connection:
        wanted = Budget(scope="team:search", window="lifetime", limit_nano_usd=1_000)
        budget = await store.set_budget(connection, wanted, now=time.time() - 100)
    dead, alive = still(engine, "dead"), still(engine, "alive")
    await dead.refresh()
    began = time.time()
    late = charge("r1", 900, cost_nano_usd=170)
    await dead.lease(TEAM, {}, by_backend([late]), at=began)
    written = settlement("r1", worker="dead", started_at=began, charges=(late,))
    await Repository(engine).write([written])
    assert await alive.end_leases("dead") == 1
    assert (await spend_of(engine, budget)).used == 170
