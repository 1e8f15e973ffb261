"""The database's clock, kept between looks at it: all processes, on whatever host, agree on it."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import select

from gateway.ledger.database import now_us

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_JITTER_S = 0.05
"""Smaller differences are the network's."""


async def now_of(connection: "AsyncConnection") -> float:
    """Unix seconds by the database's clock."""
    found = await connection.execute(select(now_us(connection.dialect.name)))
    return int(found.scalar_one()) / 1e6


class DatabaseClock:
    """Unix seconds as the database has them; until the first look, as this host has them.

    Counted on by the host's monotonic clock, so setting the host's clock changes nothing.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._offset = wall() - monotonic()
        self._seen = False

    def __call__(self) -> float:
        return self._monotonic() + self._offset

    async def read(self, connection: "AsyncConnection") -> None:
        """Look at the database's clock. Raises SQLAlchemyError."""
        before = self._monotonic()
        offset = await now_of(connection) - (before + self._monotonic()) / 2
        if not self._seen or abs(offset - self._offset) > _JITTER_S:
            self._offset, self._seen = offset, True
