"""SQLite's engine: those of one process who write wait in a queue, not in the database.

SQLite lets a writer that waits poll for the lock, so who writes again and again starves the others,
and everybody who polls holds one of the pool's connections: twenty messages that were just
delivered would take them all.
"""

import asyncio
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncEngine

if TYPE_CHECKING:
    from sqlalchemy import Engine


class SqliteEngine(AsyncEngine):
    """An engine with a queue for its writers."""

    __slots__ = ("turn",)

    def __init__(self, sync_engine: "Engine") -> None:
        super().__init__(sync_engine)
        self.turn = asyncio.Lock()
        """First come, first served; held from before a connection is taken."""
