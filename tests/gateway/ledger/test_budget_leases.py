"""Slices of a budget: leased, returned, ended for the dead, never passed by many together."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import BudgetReserved, BudgetUnavailable
from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.leases import BEATS_PER_LEASE, LEASE_S, Leases
from gateway.ledger.repository import Repository
from gateway.ledger.tables import leases
from tests.gateway.ledger.budget_samples import TEAM, run_out, set_limit, spend_of, still
from tests.gateway.ledger.samples import NOW, charge, settlement


async def test_dead_process_s_first_requests_count_however_long_they_waited(
    engine: AsyncEngine,
) -> None:
    """What started seconds before its lease was there, on a busy database, is not taken back."""
    async with engine.begin() as connection:
        wanted = Budget(scope="team:search", window="lifetime", limit_nano_usd=6_400)
        budget = await store.set_budget(connection, wanted, now=time.time() - 100)
    dead, alive = (Budgets(engine, owner=name) for name in ("dead", "alive"))
    await dead.refresh()
    began = time.time() - 20
    (await dead.reserve(TEAM, 100)).settle(90)
    await dead.sync()
    late = charge("r1", cost_nano_usd=90)
    await Repository(engine).write(
        [settlement("r1", worker="dead", started_at=began, charges=(late,))]
    )
    assert await alive.end_leases("dead") == 1
    assert await spend_of(engine, budget) == Spend(spent=90)


@pytest.fixture
async def budgets(engine: AsyncEngine) -> AsyncIterator[Budgets]:
    made = still(engine)
    yield made
    await made.aclose()


async def test_unused_slices_return(engine: AsyncEngine) -> None:
    """What one process leased and does not use, another gets after two syncs."""
    budget = await set_limit(engine, 6_400)
    one, two = still(engine, "one"), still(engine, "two")
    await one.refresh()
    await two.refresh()
    (await one.reserve(TEAM, 10)).settle(10)
    assert (await spend_of(engine, budget)).reserved > 10, "a slice, so that the next is free"
    with pytest.raises(BudgetReserved):
        await two.reserve(TEAM, 6_390)
    await one.sync()
    await one.sync()
    assert await spend_of(engine, budget) == Spend(spent=10)
    (await two.reserve(TEAM, 6_390)).settle(6_390)
    await one.aclose()
    await two.aclose()
    assert await spend_of(engine, budget) == Spend(spent=6_400)
    async with engine.connect() as connection:
        left = await connection.execute(select(func.count()).select_from(leases))
        assert left.scalar_one() == 0


async def test_slice_in_use_is_booked_seldom_and_at_once_when_it_rests(
    engine: AsyncEngine,
) -> None:
    """Between two bookings its lease covers what was spent; at rest it is booked and returned."""
    budget = await set_limit(engine, 6_400)
    mine = Leases(engine, owner="one")
    limits = [(store.counter_of(budget, NOW), budget)]

    async def spend() -> None:
        (part,) = await mine.hold(limits, 10, None)
        part.held -= 10
        part.spend(10)

    await spend()
    leased = await spend_of(engine, budget)
    assert (leased.spent, leased.reserved > 10) == (0, True)
    await mine.sync(busy=False)
    assert await spend_of(engine, budget) == leased
    await mine.sync(busy=False)
    assert await spend_of(engine, budget) == Spend(spent=10)
    await spend()
    await mine.sync()
    assert (await spend_of(engine, budget)).spent == 20


async def test_dead_process_s_slice_returns_and_its_answers_count(engine: AsyncEngine) -> None:
    """After its lease ran out: what the ledger knows of its answers is spent, the rest is free."""
    budget = await set_limit(engine, 6_400)
    dead = still(engine, "dead")
    await dead.refresh()
    began = time.time()
    (await dead.reserve(TEAM, 100)).settle(90)
    await dead.sync()
    (await dead.reserve(TEAM, 100)).settle(80)  # journalled, never booked
    await dead.reserve(TEAM, 100)  # never answered
    await Repository(engine).write(
        [
            settlement(
                f"r{cost}",
                worker="dead",
                started_at=began,
                charges=(charge(f"r{cost}", cost_nano_usd=cost),),
            )
            for cost in (90, 80)
        ]
    )
    alive = still(engine, "alive")
    await alive.beat()
    assert (await spend_of(engine, budget)).reserved > 0, "not yet run out"
    await run_out(engine)
    await alive.beat()
    await alive.beat()
    assert await spend_of(engine, budget) == Spend(spent=170)
    # the process was not dead, only stalled: what it books then is not lost
    await dead.sync()
    assert (await spend_of(engine, budget)).spent >= 170
    await dead.aclose()
    assert (await spend_of(engine, budget)).spent <= 170 + 80, "at most the unbooked part twice"


def test_dead_process_s_slice_returns_within_30_seconds() -> None:
    """Its lease runs out, and somebody's next beat ends it."""
    assert LEASE_S + LEASE_S / BEATS_PER_LEASE <= 30


async def test_living_keep_their_leases_when_the_database_comes_back(engine: AsyncEngine) -> None:
    """All leases ran out while it was away: whoever is back first lets the others beat too."""
    budget = await set_limit(engine, 6_400)
    first, second = still(engine, "first"), still(engine, "second")
    await second.refresh()
    held = await second.reserve(TEAM, 100)
    await second.sync()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE leases RENAME TO away"))
    with pytest.raises(SQLAlchemyError):
        await first.beat()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO leases"))
    await run_out(engine)
    await first.beat()
    assert (await spend_of(engine, budget)).reserved >= 100
    await second.beat()
    await first.beat()
    assert (await spend_of(engine, budget)).reserved >= 100
    held.settle(100)
    await first.aclose()
    await second.aclose()
    assert await spend_of(engine, budget) == Spend(spent=100)


async def test_soft_budget_refuses_nothing_while_the_database_is_away(engine: AsyncEngine) -> None:
    """Its slice grows unasked, policies see it, and all of it is booked as spent."""
    soft = await set_limit(engine, 1_000, soft=True)
    mine = still(engine)
    await mine.refresh()
    (await mine.reserve(TEAM, 10)).settle(10)
    await mine.sync()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE leases RENAME TO away"))
    for _ in range(3):
        (await mine.reserve(TEAM, 300)).settle(200)
    under_way = await mine.reserve(TEAM, 300)
    assert mine.state(TEAM).left < 0.2
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO leases"))
    await mine.sync()
    assert await spend_of(engine, soft) == Spend(spent=610, reserved=300)
    under_way.settle(250)
    await mine.aclose()
    assert await spend_of(engine, soft) == Spend(spent=860)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_soft_budget_does_not_wait_for_a_database_that_hangs(engine: AsyncEngine) -> None:
    """It is served within a second, and what the late transaction leased is given back."""
    soft = await set_limit(engine, 1_000, soft=True)
    mine = still(engine)
    await mine.refresh()
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE"))
        began = time.monotonic()
        for _ in range(20):
            (await mine.reserve(TEAM, 300)).settle(10)
        assert time.monotonic() - began < 3.0
    await mine.aclose()
    assert await spend_of(engine, soft) == Spend(spent=200)


async def test_hard_budget_beside_a_soft_one_holds_while_the_database_is_away(
    engine: AsyncEngine,
) -> None:
    """Only what soft budgets lack is taken unasked."""
    await set_limit(engine, 1_000, soft=True)
    await set_limit(engine, 6_400, "key:key_1")
    mine = still(engine)
    await mine.refresh()
    (await mine.reserve(TEAM, 10)).settle(10)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE leases RENAME TO away"))
    with pytest.raises(BudgetUnavailable):
        await mine.reserve(TEAM, 300)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE away RENAME TO leases"))
    await mine.aclose()


async def test_what_a_stalled_process_gives_back_is_no_overrun(engine: AsyncEngine) -> None:
    """A lease that ends twice under a live process, which then releases all: nothing was spent."""
    budget = await set_limit(engine, 6_400)
    stalled, other = still(engine, "stalled"), still(engine, "other")
    await stalled.refresh()
    held = await stalled.reserve(TEAM, 100)
    for _ in range(2):
        await stalled.sync()
        await run_out(engine)
        await other.beat()
    held.release()
    await stalled.sync()
    await stalled.aclose()
    assert await spend_of(engine, budget) == Spend()


async def test_lost_answer_to_a_commit_is_put_right(engine: AsyncEngine, budgets: Budgets) -> None:
    """When a booking is committed but its answer is lost, writing it again books nothing twice."""
    budget = await set_limit(engine, 1000)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 100)).settle(70)
    (part,) = budgets._leases.slices.values()
    before = (part.granted, part.booked_spent)
    await budgets.sync()
    part.granted, part.booked_spent = before  # as if the answer had not arrived
    await budgets.sync()
    await budgets.sync()
    assert await spend_of(engine, budget) == Spend(spent=70)


_SPENDER = """
import asyncio, json, random, sys, time
from gateway.errors import BudgetReserved, BudgetSpent
from gateway.ledger.budgets import Budgets
from gateway.ledger.leases import BEATS_PER_LEASE, LEASE_S, Leases
from gateway.ledger.database import open_engine
from gateway.ledger.keys import Caller

async def client(budgets, draw, totals):
    while True:
        estimate = draw.randint(500, 1500)
        try:
            held = await budgets.reserve(Caller(key_id="k", team="search"), estimate)
        except BudgetReserved:
            await asyncio.sleep(0.05)
            continue
        except BudgetSpent:
            return
        await asyncio.sleep(draw.random() * 0.01)
        cost = estimate * draw.randint(30, 100) // 100
        held.settle(cost)
        totals.append(cost)

async def main(url, seed):
    engine = open_engine(url)
    budgets = Budgets(engine, sync_s=0.05, lease_s=3.0)
    await budgets.start()
    draw, totals = random.Random(int(seed)), []
    print("started", flush=True)
    async with asyncio.timeout(60):
        await asyncio.gather(*(client(budgets, draw, totals) for _ in range(8)))
    await budgets.aclose()
    await engine.dispose()
    print(json.dumps({"spent": sum(totals)}), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_processes_together_never_pass_the_limit(
    database_url: str, engine: AsyncEngine
) -> None:
    """Three processes of eight clients, one of them killed: nobody overspends, most is spent."""
    limit = 400_000
    async with engine.begin() as connection:
        wanted = Budget(scope="team:search", window="lifetime", limit_nano_usd=limit)
        await store.set_budget(connection, wanted, now=time.time())
    told = await asyncio.to_thread(_run_spenders, database_url)
    spent = sum(told)
    async with engine.connect() as connection:
        (budget,) = await store.list_budgets(connection)
        counter = store.counter_of(budget, time.time())
        final = (await store.read_spend(connection, [counter]))[counter]
    assert spent <= final.spent, "the killed one's bookings count too"
    assert final.spent + final.reserved <= limit
    assert final.overrun == 0
    assert final.spent + final.reserved >= 0.95 * limit


def _run_spenders(url: str) -> list[int]:
    """What the survivors say they spent; the first is killed once it has begun."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _SPENDER, url, str(seed)], stdout=subprocess.PIPE, text=True
        )
        for seed in range(3)
    ]
    victim = processes[0]
    assert victim.stdout is not None
    assert "started" in victim.stdout.readline()
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=10)
    told = []
    for process in processes[1:]:
        out, _ = process.communicate(timeout=70)
        assert process.returncode == 0, out
        told.append(json.loads(out.splitlines()[-1])["spent"])
    return told
