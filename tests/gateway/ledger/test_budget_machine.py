"""Reserve, extend, settle, sync, expire, stall and crash in any order, against a simple model.

The model knows what every request really cost. Whatever happens: SQL's spent + reserved stay within
the limit, reserved is what the leases say, and when all is over the books are the model's.
"""

import asyncio
import contextlib
import itertools
import time
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select, text

from gateway.errors import BudgetReserved, BudgetSpent
from gateway.ledger import budget_store as store
from gateway.ledger.budget_store import Budget, Spend
from gateway.ledger.budgets import Budgets
from gateway.ledger.corrections import correct
from gateway.ledger.database import open_engine
from gateway.ledger.keys import Caller
from gateway.ledger.repository import Repository
from gateway.ledger.slices import Reservation
from gateway.ledger.tables import leases
from tests.gateway.ledger.samples import charge, settlement

TEAM = Caller(key_id="key_1", team="search")
TABLES = ("leases", "budget_spend", "budgets", "budget_alerts", "charges", "requests")


class Process:
    """A gateway process as far as budgets see it."""

    def __init__(self, budgets: Budgets, owner: str) -> None:
        self.budgets = budgets
        self.owner = owner
        self.unwritten: list[tuple[str, int]] = []
        """Settled requests that stand in its journal only."""


class BudgetMachine(RuleBasedStateMachine):
    """Three processes, one hard budget."""

    url = ""
    """Of an empty, migrated database; the test sets it."""
    reservations: Bundle[str] = Bundle("reservations")
    """Ids of requests."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engine = open_engine(self.url)
        self.numbers = itertools.count()
        self.processes: list[Process] = []
        self.costs: dict[str, int] = {}
        """What every request cost in the end."""
        self.open: dict[str, tuple[Process, Reservation]] = {}
        """Requests under way."""
        self.limit = 0

    @initialize(limit=st.integers(1, 400))
    def begin(self, limit: int) -> None:
        """A fresh budget and three processes."""
        self.limit = limit
        self.budget = Budget(scope="team:search", window="lifetime", limit_nano_usd=limit)
        self.run(self._prepare())
        for _ in range(3):
            self._start()

    @rule(target=reservations, who=st.integers(0, 2), nano_usd=st.integers(0, 90))
    def reserve(self, who: int, nano_usd: int) -> Any:
        """Hold money, if there is room."""
        process = self.processes[who]
        try:
            held = self.run(process.budgets.reserve(TEAM, nano_usd))
        except BudgetSpent:
            self.run(process.budgets.sync())  # the refusal rolled back what it had booked
            taken = self.run(self._spend())
            assert taken.spent + taken.overrun + nano_usd > self.limit, "it would have fitted"
            return multiple()
        except BudgetReserved:
            return multiple()
        request_id = f"r{next(self.numbers)}"
        self.open[request_id] = (process, held)
        return request_id

    @rule(one=reservations, nano_usd=st.integers(1, 40))
    def extend(self, one: str, nano_usd: int) -> None:
        """A stream asks for its next slice."""
        if one in self.open:
            process, held = self.open[one]
            with contextlib.suppress(BudgetSpent, BudgetReserved):
                self.run(process.budgets.extend(held, nano_usd, "small"))

    @rule(one=consumes(reservations), share=st.integers(0, 130))
    def settle(self, one: str, share: int) -> None:
        """A request ends, at less or more than was held."""
        if one not in self.open:
            return  # its process crashed
        process, held = self.open.pop(one)
        cost = held.nano_usd * share // 100
        held.settle(cost)
        self.costs[one] = cost
        process.unwritten.append((one, cost))

    @rule(who=st.integers(0, 2), nano_usd=st.integers(1, 40))
    def charge_late(self, who: int, nano_usd: int) -> None:
        """A request that was over, or never held anything, turns out to have cost something."""
        process, request_id = self.processes[who], f"late{next(self.numbers)}"
        self.run(self._add(process, nano_usd))
        self.costs[request_id] = nano_usd
        process.unwritten.append((request_id, nano_usd))

    @rule(who=st.integers(0, 2), cost=st.integers(0, 90))
    def correct(self, who: int, cost: int) -> None:
        """An operator says what a booked request should have cost."""
        process = self.processes[who]
        if process.unwritten:
            request_id, _ = process.unwritten[0]
            self.run(process.budgets.sync())
            self.run(self._write(process))
            self.run(
                correct(
                    self.engine, request_id, 0, cost_nano_usd=cost, now=time.time(), chained=False
                )
            )
            self.costs[request_id] = cost

    @rule(who=st.integers(0, 2))
    def sync(self, who: int) -> None:
        """Book and give back."""
        self.run(self.processes[who].budgets.sync())

    @rule(who=st.integers(0, 2), other=st.integers(0, 2))
    def expire(self, who: int, other: int) -> None:
        """A process stalls for longer than its lease; another ends it; the first goes on."""
        self.run(self._write(self.processes[who]))
        self.run(self._run_out(self.processes[who].owner))
        if who != other:
            self.run(self.processes[other].budgets.beat())

    @rule(who=st.integers(0, 2), late=st.booleans(), share=st.integers(0, 100))
    def crash(self, who: int, late: bool, share: int) -> None:
        """Kill -9: what was under way is booked at some usage, the rest of the slice returns."""
        process, other = self.processes[who], self.processes[(who + 1) % 3]
        if late:  # another host noticed first, by the lease's end
            self.run(self._run_out(process.owner))
            self.run(other.budgets.beat())
        for held, request_id in self._of(process):
            del self.open[request_id]
            cost = held.nano_usd * share // 100
            self.costs[request_id] = cost
            process.unwritten.append((request_id, cost))
        self.run(self._write(process))
        self.run(other.budgets.end_leases(process.owner))
        del self.processes[who]
        self._start(who)

    @invariant()
    def nothing_passes_the_limit(self) -> None:
        """SQL's own figures, after every step."""
        if not self.processes:
            return
        spend = self.run(self._spend())
        assert spend.spent >= 0
        assert spend.reserved >= 0
        assert spend.spent + spend.reserved <= self.limit
        assert spend.reserved == self.run(self._leased())

    def teardown(self) -> None:
        """Everything ends; then the books are what requests cost."""
        try:
            if self.processes:
                for _, held in self.open.values():
                    held.release()
                for process in self.processes:
                    self.run(process.budgets.aclose())
                spend = self.run(self._spend())
                assert spend.spent + spend.overrun == sum(self.costs.values())
                assert spend.reserved == 0
                assert spend.spent <= self.limit
        finally:
            self.run(self.engine.dispose())
            self.runner.close()

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def _start(self, at: int | None = None) -> None:
        owner = f"p{next(self.numbers)}"
        process = Process(Budgets(self.engine, owner=owner), owner)
        self.run(process.budgets.refresh())
        self.processes.insert(len(self.processes) if at is None else at, process)

    def _of(self, process: Process) -> list[tuple[Reservation, str]]:
        return [(held, name) for name, (owner, held) in self.open.items() if owner is process]

    async def _prepare(self) -> None:
        async with self.engine.begin() as connection:
            for table in TABLES:
                await connection.execute(text(f"DELETE FROM {table}"))
            await store.set_budget(connection, self.budget, now=time.time())

    async def _add(self, process: Process, nano_usd: int) -> None:
        process.budgets.add(TEAM, {}, {"small": nano_usd}, at=time.time())
        await asyncio.gather(*process.budgets._leases.background)

    async def _spend(self) -> Spend:
        counter = store.counter_of(self.budget, 0.0)
        async with self.engine.connect() as connection:
            return (await store.read_spend(connection, [counter]))[counter]

    async def _leased(self) -> int:
        async with self.engine.connect() as connection:
            sum_ = select(func.coalesce(func.sum(leases.c.nano_usd), 0))
            return int((await connection.execute(sum_)).scalar_one())

    async def _run_out(self, owner: str) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(
                text("UPDATE leases SET expires_us = 0 WHERE owner = :owner"), {"owner": owner}
            )

    async def _write(self, process: Process) -> None:
        """Bring the process's journal to the database."""
        rows, process.unwritten = process.unwritten, []
        if rows:
            await Repository(self.engine).write(
                [
                    settlement(
                        name,
                        worker=process.owner,
                        started_at=time.time(),
                        charges=(charge(name, cost_nano_usd=cost),),
                    )
                    for name, cost in rows
                ]
            )


def test_books_balance_whatever_happens(sqlite_template: str) -> None:
    """No interleaving of reservations, ends, stalls and crashes passes the limit or loses money."""
    BudgetMachine.url = sqlite_template
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        BudgetMachine,
        settings=hypothesis_settings(max_examples=25, stateful_step_count=25, deadline=None),
    )
