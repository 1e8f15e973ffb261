"""Requests and charges in SQL: batched idempotent inserts, and finding one request again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from gateway.ledger.database import insert_once
from gateway.ledger.records import Settlement
from gateway.ledger.rows import (
    CHARGE_COLUMNS,
    REQUEST_COLUMNS,
    charge_row,
    request_row,
    settlement_of,
    without_nul,
)
from gateway.ledger.tables import charges, requests

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class Repository:
    """The only writer and reader of `requests` and `charges` rows, one by one."""

    def __init__(self, engine: "AsyncEngine") -> None:
        self._engine = engine
        self._insert_request = _insert_once(engine, requests, REQUEST_COLUMNS)
        self._insert_charge = _insert_once(engine, charges, CHARGE_COLUMNS)
        self._postgresql = engine.dialect.name == "postgresql"

    async def write(self, settlements: Sequence[Settlement]) -> None:
        """Insert all in one transaction; rows that are already there stay as they are.

        Raises:
            SQLAlchemyError: nothing was written.
        """
        if self._postgresql:
            settlements = [without_nul(one) if _has_nul(one) else one for one in settlements]
        request_rows = [request_row(one.request) for one in settlements]
        charge_rows = [charge_row(charge) for one in settlements for charge in one.charges]
        async with self._engine.begin() as connection:
            await connection.exec_driver_sql(self._insert_request, request_rows)
            if charge_rows:
                await connection.exec_driver_sql(self._insert_charge, charge_rows)

    async def find(self, request_id: str) -> Settlement | None:
        """A request with its charges, in the order of their seq."""
        async with self._engine.connect() as connection:
            return await find_settlement(connection, request_id)


async def find_settlement(connection: "AsyncConnection", request_id: str) -> Settlement | None:
    """A request with its charges over an open connection."""
    found = (
        await connection.execute(
            select(*(requests.c[name] for name in REQUEST_COLUMNS)).where(
                requests.c.request_id == request_id
            )
        )
    ).first()
    if found is None:
        return None
    booked = await connection.execute(
        select(*(charges.c[name] for name in CHARGE_COLUMNS))
        .where(charges.c.request_id == request_id)
        .order_by(charges.c.seq)
    )
    return settlement_of(found, booked.all())


def _has_nul(settlement: Settlement) -> bool:
    request = settlement.request
    texts: list[Any] = [
        request.request_id,
        request.model,
        request.team,
        request.user,
        request.error_code,
        request.backend_model,
        *request.tags,
        *request.tags.values(),
        *(attempt.error for attempt in request.attempts),
        *(why for _, _, why in request.reasons),
    ]
    return any("\x00" in value for value in texts if value)


def _insert_once(engine: "AsyncEngine", table: "Table", columns: tuple[str, ...]) -> str:
    """The driver's own INSERT … ON CONFLICT DO NOTHING, compiled once for all batches."""
    statement = insert_once(engine.dialect.name, table)
    compiled = statement.compile(dialect=engine.dialect, column_keys=list(columns))
    assert compiled.positiontup is not None
    assert tuple(compiled.positiontup) == columns, "the rows' order is the statement's order"
    return str(compiled)
