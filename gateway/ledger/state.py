"""Points in time that the whole ledger agrees on, in `ledger_state`; unix microseconds."""

from typing import TYPE_CHECKING, Literal

from sqlalchemy import select, text, update

from gateway.ledger.database import upsert
from gateway.ledger.tables import ledger_state

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Mark = Literal[
    "rollups_from", "details_from", "half_hours_from",
    "pruned_until", "closed_until", "chained_from",
]  # fmt: skip
_CLOSING_LOCK = 4_867_165_322
SHARE_CLOSING = f"SELECT pg_advisory_xact_lock_shared({_CLOSING_LOCK})"
"""Run by a writer on PostgreSQL: no month is closed, and no budget
made, while its transaction lasts."""


async def read(connection: "AsyncConnection", mark: Mark) -> int:
    """0 if it was never set."""
    found = await connection.execute(
        select(ledger_state.c.value).where(ledger_state.c.name == mark)
    )
    return found.scalar() or 0


async def write(connection: "AsyncConnection", mark: Mark, value_us: int) -> None:
    """Set a mark, in the caller's transaction."""
    statement = upsert(connection.dialect.name, ledger_state, {"name": mark, "value": value_us})
    await connection.execute(statement)


async def let_no_month_close(connection: "AsyncConnection") -> None:
    """Nor a budget be made, until the caller's transaction ends. SQLite: whoever writes alone does.

    Before anything else is locked: whoever holds writers locks all else afterwards.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(text(SHARE_CLOSING))


async def hold_writers(connection: "AsyncConnection") -> None:
    """Let no batch be written until the caller's transaction ends."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_CLOSING_LOCK})"))
    else:  # whoever writes anything holds SQLite's lock
        await connection.execute(update(ledger_state).values(value=ledger_state.c.value))
