"""Batches in the database, and which gateway process works on which."""

from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from sqlalchemy import insert, select, update

from gateway.batches.files import Page, paged
from gateway.ledger.database import writing
from gateway.ledger.keys import Caller
from gateway.ledger.tables import batches

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

LEASE_S = 20.0
"""How long a batch waits for a process that died over it."""
WINDOW_S = 86_400.0
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


class LeaseLost(Exception):
    """Another process has taken the batch over."""


class Batch(Struct, kw_only=True):
    """A row. `body` is what clients see, without the status."""

    id: str
    team: str
    key: str
    user: str | None
    status: str
    body: dict[str, Any]
    leased_until_us: int = 0
    """Until when whoever claimed it has it; tells him, too, that he still has."""

    def shown(self) -> dict[str, Any]:
        """As OpenAI shows a batch."""
        return {"id": self.id, "object": "batch", "status": self.status, **self.body}

    def turn(self, status: str, now: float) -> None:
        """Go on to a status, noting when."""
        self.status = status
        self.body[f"{status}_at"] = int(now)


class BatchStore:
    """Callers see their team's batches only.

    Args:
        keep_s: after that a batch's row goes.
        clock: Unix seconds.
    """

    def __init__(
        self,
        engine: "AsyncEngine",
        *,
        keep_s: float,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._engine = engine
        self._keep_s = keep_s
        self._clock = clock
        self._new_id = new_id

    async def create(
        self,
        caller: Caller,
        *,
        endpoint: str,
        input_file_id: str,
        metadata: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        """A batch that a gateway process will begin with shortly."""
        now = self._clock()
        body: dict[str, Any] = {
            "endpoint": endpoint,
            "errors": None,
            "input_file_id": input_file_id,
            "completion_window": "24h",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(now),
            "expires_at": int(now + WINDOW_S),
            **dict.fromkeys(_TIMES),
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": metadata,
        }
        made = Batch(
            id=f"batch_{self._new_id()}",
            team=caller.team,
            key=caller.key_id,
            user=caller.user,
            status="validating",
            body=body,
        )
        async with writing(self._engine) as connection:
            await connection.execute(
                insert(batches).values(
                    id=made.id,
                    team=made.team,
                    key=made.key,
                    user=made.user,
                    status=made.status,
                    body=body,
                    created_us=round(now * 1e6),
                    expires_us=round((now + self._keep_s) * 1e6),
                )
            )
        return made.shown()

    async def find(self, caller: Caller, batch_id: str) -> dict[str, Any] | None:
        """The batch object, if it is there and the caller's team's."""
        query = select(batches).where(batches.c.id == batch_id, batches.c.team == caller.team)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else _batch(row).shown()

    async def listed(self, caller: Caller, page: Page) -> list[dict[str, Any]]:
        """One page, and one more row where there is another page."""
        query = select(batches).where(batches.c.team == caller.team)
        async with self._engine.connect() as connection:
            rows = await connection.execute(paged(query, batches, page))
        return [_batch(row).shown() for row in rows]

    async def cancel(self, batch_id: str) -> dict[str, Any]:
        """Have it stop; one that has ended stays as it is."""
        async with writing(self._engine) as connection:
            batch = await _locked(connection, batch_id)
            if batch.status in UNFINISHED and batch.status != "cancelling":
                batch.turn("cancelling", self._clock())
                await _write(connection, batch)
        return batch.shown()

    async def claim(self) -> Batch | None:
        """The oldest unfinished batch that no living process works on, for LEASE_S."""
        now_us = round(self._clock() * 1e6)
        free = (
            select(batches.c.id)
            .where(batches.c.status.in_(UNFINISHED), batches.c.leased_until_us < now_us)
            .order_by(batches.c.created_us)
            .limit(1)
        )
        async with self._engine.connect() as connection:
            batch_id = (await connection.execute(free)).scalar()
        if batch_id is None:
            return None
        async with writing(self._engine) as connection:
            batch = await _locked(connection, batch_id)
            if batch.leased_until_us >= now_us:
                return None  # another process was quicker
            await _write(connection, batch, leased_until_us=self._lease_end())
        return batch

    async def release(self, batch: Batch) -> None:
        """Leave it to whoever looks next."""
        async with writing(self._engine) as connection:
            held = (batches.c.id == batch.id) & (batches.c.leased_until_us == batch.leased_until_us)
            await connection.execute(update(batches).where(held).values(leased_until_us=0))

    @asynccontextmanager
    async def holding(self, batch: Batch) -> "AsyncIterator[AsyncConnection]":
        """A transaction for who claimed it: `batch` is as it is now, and is written as it is then.

        The lease begins anew.

        Raises:
            LeaseLost: it ran out, and another process has the batch.
        """
        async with writing(self._engine) as connection:
            now = await _locked(connection, batch.id)
            if now.leased_until_us != batch.leased_until_us:
                raise LeaseLost(batch.id)
            batch.status, batch.body = now.status, now.body
            yield connection
            await _write(connection, batch, leased_until_us=self._lease_end())

    def _lease_end(self) -> int:
        return round((self._clock() + LEASE_S) * 1e6)


async def _locked(connection: "AsyncConnection", batch_id: str) -> Batch:
    """The row, which nobody else changes until the transaction's end."""
    query = select(batches).where(batches.c.id == batch_id).with_for_update()
    return _batch((await connection.execute(query)).one())


async def _write(
    connection: "AsyncConnection", batch: Batch, *, leased_until_us: int | None = None
) -> None:
    if leased_until_us is not None:
        batch.leased_until_us = leased_until_us
    await connection.execute(
        update(batches)
        .where(batches.c.id == batch.id)
        .values(status=batch.status, body=batch.body, leased_until_us=batch.leased_until_us)
    )


def _batch(row: Any) -> Batch:
    return Batch(
        id=row.id,
        team=row.team,
        key=row.key,
        user=row.user,
        status=row.status,
        body=dict(row.body),
        leased_until_us=row.leased_until_us,
    )
