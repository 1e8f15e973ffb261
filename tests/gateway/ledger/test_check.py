"""The audit chain and the ledger's own check: the first broken row is named."""

from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.ledger import check, state
from gateway.ledger.check import ChainCheck
from gateway.ledger.repository import Repository
from gateway.ledger.rollups import DAY_S, DAY_US, MONTH_S, bucket_us, dimension_id
from gateway.ledger.tables import chain, charges, requests, rollup_details, rollup_values
from tests.gateway.ledger.samples import NOW, charge, settlement


async def _chained(engine: AsyncEngine, *batches: int) -> None:
    """Rows in batches, each request with two charges, written by different processes."""
    number = 0
    for size in batches:
        rows = [
            settlement(f"r{n}", charges=(charge(f"r{n}"), charge(f"r{n}", 1, kind="judge")))
            for n in range(number, number + size)
        ]
        await Repository(engine, chained=True).write(rows)
        number += size


async def _check(engine: AsyncEngine, **asked: Any) -> ChainCheck:
    async with engine.connect() as connection:
        return await check.check_chain(connection, **asked)


async def test_chain_holds_over_batches_and_late_charges(engine: AsyncEngine) -> None:
    """Every row is one link, whoever wrote it; writing a batch again adds none."""
    await _chained(engine, 3, 1, 4)
    repository = Repository(engine, chained=True)
    await repository.write([settlement("r1")])
    late = settlement("r2", charges=(charge("r2"), charge("r2", 1000, kind="shadow")))
    await repository.write([late])
    found = await _check(engine)
    assert (found.problem, found.links) == (None, 8 * 3 + 1)
    assert await _check(engine, anchor=(found.links, found.head)) == found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            update(charges).where(charges.c.request_id == "r2", charges.c.seq == 1),
            "charge 1 of request 'r2' was changed",
        ),
        (update(requests).where(requests.c.request_id == "r1"), "request 'r1' was changed"),
        (
            delete(charges).where(charges.c.request_id == "r3", charges.c.seq == 0),
            "charge 0 of request 'r3' is gone",
        ),
        (delete(chain).where(chain.c.n == 5), "link 5 is missing, before charge 1 of"),
        (update(chain).where(chain.c.n == 2).values(sha256="f" * 64), "request 'r0' was changed"),
    ],
)
async def test_first_broken_row_is_named(engine: AsyncEngine, change: Any, named: str) -> None:
    """A changed or removed row, or a touched link: the first of them is said."""
    await _chained(engine, 5)
    if change.is_update and change.table is not chain:
        change = change.values(cost_nano_usd=9)
    async with engine.begin() as connection:
        await connection.execute(change)
    found = await _check(engine)
    assert found.problem is not None
    assert named in found.problem


async def test_cut_off_or_rewritten_chain_is_seen_by_an_anchor(engine: AsyncEngine) -> None:
    """Links removed from the end leave a valid chain; the number noted earlier tells."""
    await _chained(engine, 4)
    noted = await _check(engine)
    async with engine.begin() as connection:
        await connection.execute(delete(chain).where(chain.c.n > 6))
    assert (await _check(engine)).problem is None
    cut = await _check(engine, anchor=(noted.links, noted.head))
    assert cut.problem == "links 7 to 12 were cut off"
    other = await _check(engine, anchor=(3, "0" * 64))
    assert other.problem == "link 3 is not the one that was noted"


async def test_row_that_no_link_hashes_is_named(engine: AsyncEngine) -> None:
    """A charge put beside a chained request's, and a whole request; not what was there before the
    chain began."""
    await Repository(engine).write([settlement("old")])
    await _chained(engine, 2)
    async with engine.connect() as connection:
        assert await check.unchained_problems(connection) == []
    later = settlement("forged", started_at=NOW + 60, charges=(charge("forged", at=NOW + 60),))
    beside = settlement("r1", charges=(charge("r1"), charge("r1", 7, at=NOW - 3_600)))
    await Repository(engine).write([later, beside])
    async with engine.connect() as connection:
        assert (await check.check_chain(connection)).problem is None
        assert await check.unchained_problems(connection) == [
            "audit chain: request 'forged' is in no link",
            "audit chain: charge 0 of request 'forged' is in no link",
            "audit chain: charge 7 of request 'r1' is in no link",
        ]


async def test_chain_holds_when_tags_and_reasons_are_erased(engine: AsyncEngine) -> None:
    """What deleting a customer's data empties is not hashed."""
    await _chained(engine, 3)
    async with engine.begin() as connection:
        await connection.execute(update(requests).values(tags={}, reasons=[], attempts=[]))
    assert (await _check(engine)).problem is None


async def test_odd_rows_are_named(engine: AsyncEngine) -> None:
    """A charge without a request, a reversal of nothing, of too much, and a second one."""
    rows = [
        settlement(
            name,
            charges=(
                charge(name),
                *(
                    charge(name, seq, kind="reversal", reverses_seq=of, cost_nano_usd=cost)
                    for seq, (of, cost) in enumerate(reversals, start=1)
                ),
            ),
        )
        for name, reversals in (
            ("good", [(0, -1_000)]),
            ("nothing", [(7, -1_000)]),
            ("much", [(0, -2_000)]),
            ("twice", [(0, -1_000), (0, -1_000)]),
        )
    ]
    await Repository(engine).write(rows)
    async with engine.begin() as connection:
        (row,) = await connection.execute(
            select(charges).where(charges.c.request_id == "much").limit(1)
        )
        await connection.execute(insert(charges).values({**row._mapping, "request_id": "orphan"}))
        problems = await check.row_problems(connection)
    assert sorted(problems) == [
        "charge 0 of request 'orphan' has no request",
        "charge 0 of request 'twice' is reversed twice",
        "charge 1 of request 'much' does not take back charge 0",
        "charge 1 of request 'nothing' does not take back charge 7",
    ]


async def test_wrong_details_are_named_and_rebuilt(engine: AsyncEngine) -> None:
    """A changed sum, one that is missing, one of a day without rows, and a value without text."""
    rows = [settlement(f"r{n}", user=f"u{n}", tags={"env": "prod"}, charges=()) for n in range(2)]
    await Repository(engine).write(rows)
    c, values = rollup_details.c, rollup_values.c
    async with engine.begin() as connection:
        assert await check.rollup_problems(connection) == []
        prod = select(values.id).where(values.value == "prod").scalar_subquery()
        users = c.dimension_id == dimension_id("user")
        of_users = select(c.value_id).where(users, c.span_s == DAY_S)
        of_users = of_users.order_by(c.value_id)
        first, second = (await connection.execute(of_users)).scalars()
        row = (
            await connection.execute(
                select(rollup_details).where(c.value_id == first, c.span_s == DAY_S)
            )
        ).one()
        await connection.execute(
            update(rollup_details).where(c.value_id == prod).values(prompt_tokens=7)
        )
        await connection.execute(delete(rollup_details).where(c.value_id == second))
        await connection.execute(insert(rollup_details).values({**row._mapping, "bucket_us": 0}))
        await connection.execute(update(rollup_values).where(values.id == first).values(value="?"))
        problems = await check.rollup_problems(connection)
        assert sum(f"value {first} has no text" in line for line in problems) == 2
        assert sum("tag:env 'prod'" in line and "prompt_tokens 7, " in line for line in problems)
        assert sum("requests 0, the rows say 1" in line for line in problems) == 2
        assert sum("requests 1, the rows say 0" in line for line in problems) == 1
        assert len(problems) == 7, "half hours and days"
        await check.rebuild_rollups(connection)
        assert [
            line for line in await check.rollup_problems(connection) if "text" not in line
        ] == []


async def test_month_that_is_not_the_sum_of_its_days_is_named(engine: AsyncEngine) -> None:
    """One changed, one missing, one of nothing; those that began before the sets are nobody's."""
    month_s = 31 * DAY_S
    ages = {"now": 0, "older": 10 * DAY_S, "month": month_s}
    rows = [settlement(n, user=n, started_at=NOW - age, charges=()) for n, age in ages.items()]
    await Repository(engine).write(rows)
    c = rollup_details.c
    months = select(rollup_details).where(c.span_s == MONTH_S)
    months = months.order_by(c.bucket_us, c.value_id)
    async with engine.begin() as connection:
        assert await check.rollup_problems(connection) == []
        found = (await connection.execute(months)).all()
        assert [row.requests for row in found] == [1, 1, 1]
        october, first, second = found
        changed = update(rollup_details).where(c.span_s == MONTH_S)
        await connection.execute(changed.where(c.value_id == first.value_id).values(errors=1))
        await connection.execute(
            delete(rollup_details).where(c.span_s == MONTH_S, c.value_id == second.value_id)
        )
        moved = {**october._mapping, "bucket_us": bucket_us(MONTH_S, october.bucket_us - DAY_US)}
        await connection.execute(insert(rollup_details).values(moved))
        problems = [
            line
            for line in await check.rollup_problems(connection)
            if "not the sums of its days" in line
        ]
        assert [line.partition(",")[0] for line in problems] == [
            "details of the month from 2026-09-01T00:00Z",
            *["details of the month from 2026-11-01T00:00Z"] * 2,
        ]
        await state.write(connection, "half_hours_from", second.bucket_us + DAY_US)
        assert await check.rollup_problems(connection) == []
        await check.rebuild_rollups(connection)
        assert await check.rollup_problems(connection) == []
        assert (await connection.execute(months)).all() == found
