"""Old rows go, what they summed to stays: `[database] retention_days`.

A request goes with all its charges, and what was said of its answer, once it and the newest of them
are older than that: comments that outlived it could never be found again for whom they are about.
Roll-ups, closed bills and the audit chain's links stay, so reports by their keys go back for ever;
those by user or tag begin where the rows do, as details go with them: tags may say anything. Where
months are partitions, their rows go with the month, in one drop.
"""

from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, func, select

from gateway.ledger import partitions, state
from gateway.ledger.database import writing
from gateway.ledger.report_query import ReportError
from gateway.ledger.rollup_writer import sweep
from gateway.ledger.rollups import DAY_S, DAY_US, DETAIL_SPANS_S, SET_SPANS_S, bucket_us
from gateway.ledger.rows import to_us
from gateway.ledger.tables import charges, feedback, requests, rollup_details

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_BATCH = 2_000


async def tidy(engine: "AsyncEngine", *, retention_days: int | None, now: float) -> int:
    """What a gateway does every hour: partitions of coming months, if any, and `prune`."""
    await partitions.look_ahead(engine, now=now)
    if retention_days is None:
        return 0
    return await prune(engine, retention_days=retention_days, now=now)


async def prune(engine: "AsyncEngine", *, retention_days: int, now: float) -> int:
    """Remove requests that are older; how many went. Whole UTC days, a batch per transaction; whole
    months, where those are partitions.

    Args:
        now: unix seconds.

    Raises:
        ReportError: some of those rows are in no roll-up yet.
    """
    until_us = to_us((now // DAY_S - retention_days) * DAY_S)
    async with writing(engine) as connection:
        if not await _allowed(engine, until_us):
            raise ReportError(
                "rows from before an upgrade are in no roll-up, so they would be lost to reports; "
                "run `headgate db check --rebuild` first"
            )
        if until_us > await state.read(connection, "pruned_until"):
            await state.write(connection, "pruned_until", until_us)
    await _details(engine, until_us)
    gone = 0
    while (dropped := await _month(engine, until_us)) is not None:
        gone += dropped
    while batch := await _batch(engine, until_us):
        gone += batch
    return gone


async def _details(engine: "AsyncEngine", until_us: int) -> None:
    """Remove the roll-ups' details of older days, a day per transaction."""
    gone = False
    for span_s in {*DETAIL_SPANS_S, *SET_SPANS_S}:
        while await _day(engine, span_s, until_us):
            gone = True
    if gone:
        async with writing(engine) as connection:
            await state.hold_writers(connection)
            await sweep(connection)


async def _day(engine: "AsyncEngine", span_s: int, until_us: int) -> bool:
    """Remove the oldest day's details of a span; False: none is that old."""
    span, at = rollup_details.c.span_s, rollup_details.c.bucket_us
    async with writing(engine) as connection:
        oldest = select(func.min(at)).where(span == span_s, at < until_us)
        oldest_us = (await connection.execute(oldest)).scalar()
        if oldest_us is None:
            return False
        end_us = bucket_us(DAY_S, oldest_us) + DAY_US
        await connection.execute(delete(rollup_details).where(span == span_s, at < end_us))
        return True


async def _allowed(engine: "AsyncEngine", until_us: int) -> bool:
    async with engine.connect() as connection:
        from_us = await state.read(connection, "rollups_from")
        first = select(requests.c.request_id).where(requests.c.started_us < min(from_us, until_us))
        return from_us == 0 or (await connection.execute(first.limit(1))).first() is None


async def _month(engine: "AsyncEngine", until_us: int) -> int | None:
    """Drop the oldest month's partitions; None where it is not that old, or there are none."""
    async with engine.connect() as connection:
        listed = await partitions.months(connection)
    if not listed or listed[0].after.start_us > until_us:
        return None
    async with partitions.patient(engine) as connection:
        if not await partitions.mine(connection) or (await partitions.months(connection)) != listed:
            return None
        return await partitions.drop(connection, listed[0], until_us=until_us)


async def _batch(engine: "AsyncEngine", until_us: int) -> int:
    """One transaction's worth; 0 when none is left or another process is at it."""
    newer = exists().where(
        charges.c.request_id == requests.c.request_id, charges.c.at_us >= until_us
    )
    async with writing(engine) as connection:
        wanted = select(requests.c.request_id).where(requests.c.started_us < until_us, ~newer)
        if connection.dialect.name == "postgresql":
            if not await partitions.mine(connection):
                return 0
            if listed := await partitions.months(connection):
                wanted = wanted.where(partitions.in_no_month(listed))
        found = await connection.execute(wanted.order_by(requests.c.started_us).limit(_BATCH))
        ids = sorted(found.scalars())
        if ids:
            for table in (charges, feedback, requests):
                await connection.execute(delete(table).where(table.c.request_id.in_(ids)))
    return len(ids)
