"""Callers, a budget of theirs, and a process whose clock stands."""

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.keys import Caller
from gateway.ledger.tables import leases
from tests.gateway.ledger.samples import NOW

TEAM = Caller(key_id="key_1", team="search")
OTHER = Caller(key_id="key_2", team="ads")


async def set_limit(
    engine: AsyncEngine, limit: int, scope: str = "team:search", *, soft: bool = False
) -> Budget:
    """A budget per day."""
    async with engine.begin() as connection:
        wanted = Budget(scope=scope, window="day", limit_nano_usd=limit, soft=soft)
        return await store.set_budget(connection, wanted, now=NOW)


async def spend_of(engine: AsyncEngine, budget: Budget, now: float = NOW) -> Spend:
    """What SQL says of the window at `now`."""
    counter = store.counter_of(budget, now)
    async with engine.connect() as connection:
        return (await store.read_spend(connection, [counter]))[counter]


def still(engine: AsyncEngine, owner: str = "a") -> Budgets:
    """A process whose clock stands, and that syncs only when told."""
    return Budgets(engine, clock=lambda: NOW, owner=owner)


async def run_out(engine: AsyncEngine) -> None:
    """Let time pass until all leases are over."""
    async with engine.begin() as connection:
        await connection.execute(update(leases).values(expires_us=0))
