"""Old rows go, what they summed to stays: `[database] retention_days`.

A request goes with all its charges, and what was said of its answer, once it and the newest of them
are older than that: comments that outlived it could never be found again for whom they are about.
Roll-ups, closed bills and the audit chain's links stay, so reports by their keys go back for ever;
those by user or tag begin where the rows do.
"""

from typing import TYPE_CHECKING

from sqlalchemy import delete, exists, select, text

from gateway.ledger import state
from gateway.ledger.database import writing
from gateway.ledger.report_query import ReportError
from gateway.ledger.rows import to_us
from gateway.ledger.tables import charges, feedback, requests

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

_DAY_S = 86_400
_BATCH = 2_000
_LOCK = 4_867_165_324


async def prune(engine: "AsyncEngine", *, retention_days: int, now: float) -> int:
    """Remove requests that are older; how many went. Whole UTC days, a batch per transaction.

    Args:
        now: unix seconds.

    Raises:
        ReportError: some of those rows are in no roll-up yet.
    """
    until_us = to_us((now // _DAY_S - retention_days) * _DAY_S)
    async with writing(engine) as connection:
        if not await _allowed(engine, until_us):
            raise ReportError(
                "rows from before an upgrade are in no roll-up, so they would be lost to reports; "
                "run `headgate db check --rebuild` first"
            )
        if until_us > await state.read(connection, "pruned_until"):
            await state.write(connection, "pruned_until", until_us)
    gone = 0
    while batch := await _batch(engine, until_us):
        gone += batch
    return gone


async def _allowed(engine: "AsyncEngine", until_us: int) -> bool:
    async with engine.connect() as connection:
        from_us = await state.read(connection, "rollups_from")
        first = select(requests.c.request_id).where(requests.c.started_us < min(from_us, until_us))
        return from_us == 0 or (await connection.execute(first.limit(1))).first() is None


async def _batch(engine: "AsyncEngine", until_us: int) -> int:
    """One transaction's worth; 0 when none is left or another process is at it."""
    newer = exists().where(
        charges.c.request_id == requests.c.request_id, charges.c.at_us >= until_us
    )
    async with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            mine = await connection.execute(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})"))
            if not mine.scalar_one():
                return 0
        found = await connection.execute(
            select(requests.c.request_id)
            .where(requests.c.started_us < until_us, ~newer)
            .order_by(requests.c.started_us)
            .limit(_BATCH)
        )
        ids = sorted(found.scalars())
        if ids:
            for table in (charges, feedback, requests):
                await connection.execute(delete(table).where(table.c.request_id.in_(ids)))
    return len(ids)
