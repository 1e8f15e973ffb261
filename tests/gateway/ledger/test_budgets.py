"""Limits hold: under interleavings, between processes, after crashes; and cost next to nothing."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import BudgetReserved, BudgetSpent, Unavailable
from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.database import open_engine
from gateway.ledger.keys import Caller
from gateway.ledger.repository import Repository
from gateway.ledger.slices import Reservation
from gateway.ledger.stamp import NAME, touch
from gateway.ledger.tables import leases
from gateway.ledger.windows import window_start_us
from tests.gateway.ledger.samples import NOW, charge, settlement

TEAM = Caller(key_id="key_1", team="search")
OTHER = Caller(key_id="key_2", team="ads")


async def _set(
    engine: AsyncEngine, limit: int, scope: str = "team:search", *, soft: bool = False
) -> Budget:
    async with engine.begin() as connection:
        wanted = Budget(scope=scope, window="day", limit_nano_usd=limit, soft=soft)
        return await store.set_budget(connection, wanted, now=NOW)


async def _spend(engine: AsyncEngine, budget: Budget) -> Spend:
    counter = store.counter_of(budget, NOW)
    async with engine.connect() as connection:
        return (await store.read_spend(connection, [counter]))[counter]


def _budgets(engine: AsyncEngine, owner: str = "a", *, lease_s: float = 30.0) -> Budgets:
    """Whose clock stands, and who syncs only when told."""
    return Budgets(engine, clock=lambda: NOW, owner=owner, lease_s=lease_s)


@pytest.fixture
async def budgets(engine: AsyncEngine) -> AsyncIterator[Budgets]:
    made = _budgets(engine)
    yield made
    await made.aclose()


async def test_caller_without_a_budget_pays_no_transaction(engine: AsyncEngine) -> None:
    """No budget of his: nothing is asked of the database, and everything is left."""
    await _set(engine, 100)
    budgets = _budgets(engine)
    await budgets.refresh()
    await engine.dispose()
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE budget_spend RENAME TO away"))
    reservation = await budgets.reserve(OTHER, 10**12)
    reservation.settle(10**12)
    assert budgets.state(OTHER).left == 1.0
    with pytest.raises(Unavailable):
        await budgets.reserve(TEAM, 10)


async def test_reservations_stop_at_the_limit(engine: AsyncEngine, budgets: Budgets) -> None:
    """Held money counts; spent money is refused for good, held money only for now."""
    budget = await _set(engine, 100)
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
    assert await _spend(engine, budget) == Spend(spent=100, reserved=0, overrun=0)
    assert budgets.state(TEAM).left == 0.0
    assert budgets.state(OTHER).left == 1.0


async def test_overrun_is_apart_and_counts(engine: AsyncEngine, budgets: Budgets) -> None:
    """What a request cost beyond its reservation never hides in spent, and stops the next one."""
    budget = await _set(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 60)).settle(90)
    await budgets.sync()
    await budgets.sync()
    assert await _spend(engine, budget) == Spend(spent=60, reserved=0, overrun=30)
    with pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 20)
    (await budgets.reserve(TEAM, 10)).release()


async def test_all_budgets_of_a_caller_must_have_room(
    engine: AsyncEngine, budgets: Budgets
) -> None:
    """Key, team, user and everybody: the tightest decides, and a refusal holds nothing anywhere."""
    wide = await _set(engine, 1000, "global")
    await _set(engine, 500, "key:key_1")
    await _set(engine, 50, "user:ann")
    await budgets.refresh()
    ann = Caller(key_id="key_1", team="search", user="ann")
    with pytest.raises(BudgetSpent, match="user:ann"):
        await budgets.reserve(ann, 51)
    with pytest.raises(BudgetSpent, match="key:key_1"):
        await budgets.reserve(TEAM, 501)
    (await budgets.reserve(ann, 50)).settle(25)
    await budgets.sync()
    await budgets.sync()
    assert await _spend(engine, wide) == Spend(spent=25, reserved=0, overrun=0)
    assert budgets.state(ann).left == 0.5
    assert budgets.state(TEAM).left == 0.95
    assert budgets.state(OTHER).left == 0.975


async def test_soft_budget_warns_and_refuses_nothing(engine: AsyncEngine, budgets: Budgets) -> None:
    """Spending beyond a soft limit is booked, and said once per window."""
    budget = await _set(engine, 100, soft=True)
    await budgets.refresh()
    for _ in range(3):
        (await budgets.reserve(TEAM, 80)).settle(80)
    await budgets.sync()
    with structlog.testing.capture_logs() as logs:
        await budgets.refresh()
        await budgets.refresh()
    assert (await _spend(engine, budget)).spent == 240
    assert [entry["percent"] for entry in logs] == [80, 100]
    assert {entry["event"] for entry in logs} == {"budget_threshold_passed"}
    assert budgets.state(TEAM).left == 0.0


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
    assert await _spend(engine, await _set(engine, 10_000)) == Spend(spent=2_040)
    everybody = await _set(engine, 10_000, "global")
    assert (await _spend(engine, everybody)).spent == 3_040
    hostile = await _set(engine, 10_000, "user:' OR 1=1 --")
    assert (await _spend(engine, hostile)).spent == 0


async def test_changed_and_removed_budgets_are_seen(engine: AsyncEngine, budgets: Budgets) -> None:
    """A higher limit lets in, a removed one lets in, setting it again counts on."""
    await _set(engine, 100)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 100)).settle(100)
    await _set(engine, 150)
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
        with pytest.raises(ValueError, match="allowed"):
            wanted = Budget(scope=scope, window=window, limit_nano_usd=limit)
            await store.set_budget(connection, wanted, now=NOW)


async def test_unused_slices_return(engine: AsyncEngine) -> None:
    """What one process leased and does not use, another gets after two syncs."""
    budget = await _set(engine, 6_400)
    one, two = _budgets(engine, "one"), _budgets(engine, "two")
    await one.refresh()
    await two.refresh()
    (await one.reserve(TEAM, 10)).settle(10)
    assert (await _spend(engine, budget)).reserved > 10, "a slice, so that the next is free"
    with pytest.raises(BudgetReserved):
        await two.reserve(TEAM, 6_390)
    await one.sync()
    await one.sync()
    assert await _spend(engine, budget) == Spend(spent=10)
    (await two.reserve(TEAM, 6_390)).settle(6_390)
    await one.aclose()
    await two.aclose()
    assert await _spend(engine, budget) == Spend(spent=6_400)
    async with engine.connect() as connection:
        left = await connection.execute(select(func.count()).select_from(leases))
        assert left.scalar_one() == 0


async def test_windows_follow_one_another(engine: AsyncEngine) -> None:
    """A spent day does not spend the next; a reservation ends in the window it began in."""
    budget = await _set(engine, 100)
    now = NOW
    budgets = Budgets(engine, clock=lambda: now, owner="a")
    await budgets.refresh()
    late = await budgets.reserve(TEAM, 100)
    now += 86_400
    next_day = await budgets.reserve(TEAM, 100)
    late.settle(70)
    next_day.settle(20)
    await budgets.aclose()
    assert await _spend(engine, budget) == Spend(spent=70)
    async with engine.connect() as connection:
        tomorrow = store.counter_of(budget, now)
        assert (await store.read_spend(connection, [tomorrow]))[tomorrow] == Spend(spent=20)


async def test_dead_process_s_slice_returns_and_its_answers_count(engine: AsyncEngine) -> None:
    """After its lease ran out: what the ledger knows of its answers is spent, the rest is free."""
    budget = await _set(engine, 6_400)
    dead = _budgets(engine, "dead", lease_s=0.8)
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
    alive = _budgets(engine, "alive")
    await alive.beat()
    assert (await _spend(engine, budget)).reserved > 0, "not yet run out"
    await asyncio.sleep(0.9)
    await alive.beat()
    await alive.beat()
    assert await _spend(engine, budget) == Spend(spent=170)
    # the process was not dead, only stalled: what it books then is not lost
    await dead.sync()
    assert (await _spend(engine, budget)).spent >= 170
    await dead.aclose()
    assert (await _spend(engine, budget)).spent <= 170 + 80, "at most the unbooked part twice"


async def test_cancelled_waiter_leaves_nothing_held(engine: AsyncEngine, budgets: Budgets) -> None:
    """A client that goes away while its reservation is on its way blocks nobody."""
    budget = await _set(engine, 100)
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
        assert await _spend(engine, budget) == Spend()
    (await budgets.reserve(TEAM, 100)).release()


async def test_lost_answer_to_a_commit_is_put_right(engine: AsyncEngine, budgets: Budgets) -> None:
    """When a booking is committed but its answer is lost, writing it again books nothing twice."""
    budget = await _set(engine, 1000)
    await budgets.refresh()
    (await budgets.reserve(TEAM, 100)).settle(70)
    (part,) = budgets._slices.values()
    before = (part.granted, part.booked_spent)
    await budgets.sync()
    part.granted, part.booked_spent = before  # as if the answer had not arrived
    await budgets.sync()
    await budgets.sync()
    assert await _spend(engine, budget) == Spend(spent=70)


_steps = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["reserve", "settle", "over", "release", "sync"]),
        st.integers(1, 60),
    ),
    max_size=30,
)


@hypothesis_settings(max_examples=15, deadline=None)
@given(steps=_steps, limit=st.integers(1, 300))
def test_no_interleaving_passes_the_limit(
    sqlite_template: str, steps: list[tuple[int, str, int]], limit: int
) -> None:
    """Two processes in any order of steps: spent + reserved ≤ limit, and the books balance."""
    asyncio.run(_interleave(sqlite_template, steps, limit))


async def _interleave(url: str, steps: list[tuple[int, str, int]], limit: int) -> None:
    engine = open_engine(url)
    async with engine.begin() as connection:
        for table in ("leases", "budget_spend", "budgets"):
            await connection.execute(text(f"DELETE FROM {table}"))
    budget = await _set(engine, limit)
    pair = (_budgets(engine, "one"), _budgets(engine, "two"))
    open_: tuple[list[Reservation], list[Reservation]] = ([], [])
    spent = overrun = 0
    for budgets in pair:
        await budgets.refresh()
    for who, step, amount in steps:
        if step == "reserve":
            try:
                open_[who].append(await pair[who].reserve(TEAM, amount))
            except (BudgetSpent, BudgetReserved):
                continue
        elif step == "sync":
            await pair[who].sync()
        elif open_[who]:
            ended = open_[who].pop(0)
            cost = {"settle": min(amount, ended.nano_usd), "over": ended.nano_usd + amount}
            actual = cost.get(step, 0)
            ended.settle(actual)
            spent += min(actual, ended.nano_usd)
            overrun += max(actual - ended.nano_usd, 0)
        now = await _spend(engine, budget)
        assert 0 <= now.spent <= spent
        assert now.reserved >= 0
        assert now.spent + now.reserved <= limit
        held = sum(reservation.nano_usd for reservation in (*open_[0], *open_[1]))
        assert spent + held <= limit
    for reservations in open_:
        for reservation in reservations:
            reservation.release()
    for budgets in pair:
        await budgets.aclose()
    assert await _spend(engine, budget) == Spend(spent=spent, overrun=overrun)
    await engine.dispose()


_SPENDER = """
import asyncio, json, random, sys, time
from gateway.errors import BudgetReserved, BudgetSpent
from gateway.ledger.budgets import Budgets
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


@pytest.mark.parametrize(
    ("window", "start"),
    [
        ("minute", "2026-11-21T12:00:00"),
        ("hour", "2026-11-21T12:00:00"),
        ("day", "2026-11-21T00:00:00"),
        ("month", "2026-11-01T00:00:00"),
        ("lifetime", "1970-01-01T00:00:00"),
    ],
)
def test_windows_are_calendar_windows_in_utc(window: str, start: str) -> None:
    """Each window holds the moment, and begins where the calendar says."""
    from datetime import UTC, datetime

    began = window_start_us(window, NOW)
    assert datetime.fromtimestamp(began / 1e6, UTC).isoformat() == f"{start}+00:00"
    assert window_start_us(window, began / 1e6) == began


async def test_new_budget_on_this_host_is_seen_at_once(engine: AsyncEngine, tmp_path: Path) -> None:
    """The stamp that commands touch makes the next reservation look again."""
    budgets = Budgets(engine, clock=lambda: NOW, owner="a", stamp=tmp_path / NAME)
    await budgets.refresh()
    await _set(engine, 100)
    (await budgets.reserve(TEAM, 101)).release()
    touch(tmp_path)
    with pytest.raises(BudgetSpent):
        await budgets.reserve(TEAM, 101)
    await budgets.aclose()
