"""What requests cost beyond what was held for them: by key, never hidden in overheads.

Budgets count it apart from what was spent; here it stands under the keys whose requests did it.
"""

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from gateway.ledger.database import insert_once
from gateway.ledger.money import usd_text
from gateway.ledger.tables import budget_overruns
from gateway.ledger.windows import window_start_us

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class Overruns:
    """This process's overruns until they are written, which is soon."""

    def __init__(self, engine: "AsyncEngine") -> None:
        self._engine = engine
        self._new: dict[tuple[str, int], tuple[int, int]] = {}

    def note(self, key: str, nano_usd: int, now: float) -> None:
        """A request of `key` cost that much more than was held for it."""
        at = (key, window_start_us("day", now))
        known, count = self._new.get(at, (0, 0))
        self._new[at] = (known + nano_usd, count + 1)

    async def write(self) -> None:
        """Add what is new to the database. Raises SQLAlchemyError: it stays for the next time."""
        if not self._new:
            return
        new, self._new = self._new, {}
        try:
            async with self._engine.begin() as connection:
                for (key, day_us), (nano_usd, count) in sorted(new.items()):
                    await _add(connection, key, day_us, nano_usd, count)
        except BaseException:
            for at, (nano_usd, count) in new.items():
                later, more = self._new.get(at, (0, 0))
                self._new[at] = (later + nano_usd, more + count)
            raise


async def add_overrun(
    connection: "AsyncConnection", key: str, nano_usd: int, *, now: float
) -> None:
    """Note one in the caller's transaction."""
    await _add(connection, key, window_start_us("day", now), nano_usd, 1)


async def _add(
    connection: "AsyncConnection", key: str, day_us: int, nano_usd: int, count: int
) -> None:
    c = budget_overruns.c
    await connection.execute(
        insert_once(connection.dialect.name, budget_overruns).values(key=key, day_us=day_us)
    )
    await connection.execute(
        update(budget_overruns)
        .where(c.key == key, c.day_us == day_us)
        .values(nano_usd=c.nano_usd + nano_usd, requests=c.requests + count)
    )


async def overrun_of(connection: "AsyncConnection", since_us: int, until_us: int) -> int:
    """Everybody's overrun in a period, nano-dollars; its first UTC day counts whole."""
    c = budget_overruns.c
    begin_us = window_start_us("day", since_us / 1e6)
    total = select(func.sum(c.nano_usd)).where(c.day_us >= begin_us, c.day_us < until_us)
    return int((await connection.execute(total)).scalar() or 0)


async def list_overruns(
    connection: "AsyncConnection", *, since: float | None = None
) -> list[dict[str, Any]]:
    """key, overrun_usd and the number of requests, the largest first.

    Args:
        since: unix seconds; whole UTC days count.
    """
    c = budget_overruns.c
    sums = (func.sum(c.nano_usd).label("nano_usd"), func.sum(c.requests).label("requests"))
    query = select(c.key, *sums).group_by(c.key).order_by(sums[0].desc(), c.key)
    if since is not None:
        query = query.where(c.day_us >= window_start_us("day", since))
    return [
        {"key": row.key, "overrun_usd": usd_text(int(row.nano_usd)), "requests": int(row.requests)}
        for row in await connection.execute(query)
    ]
